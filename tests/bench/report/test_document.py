"""The report comes from committed results alone, and says the same each time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.attention.cases import AttentionCase
from bench.attention.shapes import Shape
from bench.harness import results
from bench.harness.case import Contender, new_row
from bench.report import document
from bench.report.document import BEGIN, END
from bench.report.duels import duel
from tests.bench import made

pytest.importorskip("matplotlib")

RUN = replace(made.RUN, others=0.021, steal=0.004)


def rows(task, shape, ours, peer, memory=False):
    """A case with a back end of ours, another that is faster, a peer, and one that computes something easier."""
    case = AttentionCase(task, shape, memory=memory)
    listed = [made.row(case, "ours cpu", ours), made.row(case, "ours eager", ours * 0.9)]
    for name, median in (("peer", peer), ("worse peer", 2 * peer), ("bound", ours * 0.1)):
        against = {"ours cpu": [median / ours * x for x in (0.9, 1, 1.1)]}
        listed.append(made.row(case, name, median, against=against, like_for_like=name != "bound"))
    if memory:
        listed = [replace(row, status="weighed", peak_bytes=int(1e6 * row.seconds[1])) for row in listed]
    absent, liar = Contender(name="absent", version="1"), Contender(name="liar", version="1")
    return [*listed, new_row(case, absent, "unavailable", "not here"), new_row(case, liar, "wrong", "o: off by 1")]


@pytest.fixture
def machine(tmp_path):
    """A root with a README and the results of one machine."""
    found = []
    for i, horizon in enumerate((1024, 4096, 16384)):
        found += rows("training", Shape(512, horizon), 1e-2, 1e-2 * (0.7 + 0.2 * i))
        found += rows("forward", Shape(512, horizon, "bf16"), 1e-3, 2e-3)
        found += rows("training", Shape(256, horizon), 1e-3, 2e-3, memory=True)
    folder = tmp_path / "results"
    results.save([replace(RUN, rows=found)], folder / "a" / RUN.file)
    decode = [row for m in (1024, 4096) for row in rows("decode", Shape(1, m), 1e-4, 3e-4)]
    results.save([replace(RUN, command="decode", rows=decode)], folder / "a" / "decode-cpu-1.jsonl")
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    (tmp_path / "docs").mkdir()
    return tmp_path


def test_writing_it_again_changes_no_byte(machine):
    written = document.write(machine, machine / "results")
    first = {path: path.read_bytes() for path in written}
    assert {path.name for path in written} == {
        "README.md",
        "benchmarks.md",
        "bench-a-speed.png",
        "bench-a-more.png",
    }
    document.write(machine, machine / "results")
    assert {path: path.read_bytes() for path in written} == first


def test_rows_that_count_no_bytes_have_no_place_in_the_roofline(machine):
    models = rows("training", Shape(512, 1024), 1e-2, 2e-2)
    for row in models:
        row.work = {**row.work, "bytes": 0}
    results.save([replace(RUN, rows=models)], machine / "results" / "a" / RUN.file)
    assert document.write(machine, machine / "results")


def test_readme_changes_between_the_markers_only(machine):
    document.write(machine, machine / "results")
    text = (machine / "README.md").read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert (
        "| decode one token, 4,096 memory entries, 8 heads of 64, fp32 | 100 us | 300 us, peer | 3.00 (2.70 - 3.30) |"
        in text
    )


def test_the_worst_cases_are_named(machine):
    document.write(machine, machine / "results")
    worst = "0.70x (attention forward and backward of 512 tokens, 1,024 memory entries, 8 heads of 64, fp32, 1 thread)"
    for name in ("README.md", "docs/benchmarks.md"):
        told = f"Fastest in 6 of 8 like-for-like cases; largest losses: {worst}, 0.90x"
        assert told in (machine / name).read_text()


def test_wrong_and_unavailable_contenders_are_listed_without_a_time(machine):
    document.write(machine, machine / "results")
    text = (machine / "docs" / "benchmarks.md").read_text()
    assert "| liar | wrong |" in text
    assert "Other processes took 2.1% of the cores' time, other machines 0.4%." in text
    assert "- Unavailable (not here): absent." in text


def test_comments_of_a_machine_stand_below_its_losses(machine):
    (machine / "results" / "a" / "comments.md").write_text("Lost because of that.\n")
    document.write(machine, machine / "results")
    assert "Lost because of that." in (machine / "docs" / "benchmarks.md").read_text()


def test_ours_is_the_default_back_end_and_the_peer_the_best_that_computes_the_same():
    found = duel(RUN, rows("forward", Shape(4, 4), 1.0, 2.0))
    assert (found.ours.contender, found.peer.contender, found.lead[1]) == ("ours cpu", "peer", 2.0)


def test_it_refuses_results_of_two_machines_in_one_folder(machine):
    other = replace(RUN, machine={**RUN.machine, "cpu": "B"}, machine_name="b")
    results.save([other], machine / "results" / "a" / "other.jsonl")
    with pytest.raises(ValueError, match="not compared"):
        document.write(machine, machine / "results")


def test_it_refuses_quick_results(machine):
    results.save([replace(RUN, quick=True)], machine / "results" / "a" / "quick.jsonl")
    with pytest.raises(ValueError, match="--quick"):
        document.write(machine, machine / "results")


@pytest.mark.parametrize("text", ["", BEGIN, f"{END}{BEGIN}", f"{BEGIN * 2}{END}"])
def test_it_refuses_a_readme_without_its_markers(text):
    with pytest.raises(ValueError, match=r"README\.md"):
        document.between_markers(text, "new")


def test_it_refuses_an_empty_folder(tmp_path):
    with pytest.raises(ValueError, match="got none"):
        document.write(tmp_path, tmp_path)
