"""The demonstration: what it leaves behind, what it refuses, and that its checks can fail."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import shutil
from dataclasses import replace
from html import escape, unescape
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from dsmr.claim import DROPPINGS, OccupiedError, claimed
from dsmr.cli import app
from dsmr.corpus.prepare import PrepareReport
from dsmr.demo import run as demo
from dsmr.demo.controls import Controls
from dsmr.demo.outcome import Outcome
from dsmr.demo.page import _gain, percent
from dsmr.demo.run import FILES, OWN, QUICK, run_demo
from dsmr.evaluation.baselines import Assessment
from dsmr.evaluation.models import Probed, Span
from dsmr.evaluation.pieces import Evaluation
from dsmr.evaluation.probes.bins import Bin
from dsmr.evaluation.probes.krcu import Resets
from dsmr.files import IN_USE
from dsmr.generation.takes import Take
from dsmr.model.checkpoint import load_checkpoint, read_info, save_checkpoint
from dsmr.model.config import preset
from dsmr.model.transformer import Transformer
from dsmr.model.verdict import expect_noise
from dsmr.music.analysis.comparison import NUMBERS, Compared, Group, Reference
from dsmr.music.analysis.histograms import Profile
from dsmr.music.analysis.order import FEWEST_PIECES, OrderNumber, OrderVerdict, UsualOrder
from dsmr.music.analysis.statistics import ESSENTIAL, Comparison, Range, measure
from dsmr.music.midi import read_midi
from dsmr.music.tokens import NOTE_DTYPE, Performance
from dsmr.training import Run, RunFolder, TrainingConfig
from tests.outline import Outline, leads_outside

TINY = replace(
    QUICK,
    corpus_tokens=60_000,  # enough excerpts, of enough seconds, for verdicts
    longest=3_000,
    training=TrainingConfig(steps=2, lanes=1, validations=1, validation_tokens=500),
    resets=Resets(at=(64,), width=64, end=512),
    tries=5,
    seconds=20.0,
    learns=True,
)


GUEST = "a model <from> elsewhere"


@pytest.fixture(scope="module")
def told() -> StringIO:
    """What it says while it runs."""
    return StringIO()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, told: StringIO) -> tuple[Path, Outcome]:
    """With a guest: a model of another size that has learned nothing."""
    base = tmp_path_factory.mktemp("demo")
    torch.manual_seed(1)
    save_checkpoint(base / "guest", Transformer(preset("tiny", width=32)))
    console = Console(file=told, width=200)
    return base / "out", run_demo(base / "out", TINY, guests={GUEST: base / "guest"}, console=console)


def test_warns_of_a_model_that_has_learned_too_little(ran: tuple[Path, Outcome], told: StringIO) -> None:
    warning = expect_noise(read_info(ran[0] / "run" / "best").training)
    assert warning is not None  # after so few steps
    assert f"warning: {warning}\n" in told.getvalue()


def test_leaves_what_it_lists(ran: tuple[Path, Outcome]) -> None:
    folder, _ = ran
    assert {path.name for path in folder.iterdir()} == set(FILES)
    load_checkpoint(folder / "run" / "best")
    assert {path.name for path in (folder / "takes").iterdir()} == {
        f"take-{n}.mid" for n in range(1, 2 * TINY.takes + 1)
    }


@pytest.mark.parametrize(("plan", "tokens"), [(demo.FULL, 1_536_000), (QUICK, 133_120)], ids=["full", "quick"])
def test_trains_on_a_number_of_tokens_unless_that_takes_far_too_long(plan: demo.Plan, tokens: int) -> None:
    training = plan.training
    assert training.steps is not None
    assert training.minutes is not None
    assert training.steps * training.lanes * training.accumulate * demo.DEMO_MODEL.segment == tokens
    assert tokens / (60 * training.minutes) < 7_250 / 4  # tokens/s: a quarter of those of two quiet cores are enough


def test_keeps_the_take_that_it_names(ran: tuple[Path, Outcome]) -> None:
    folder, outcome = ran
    assert (folder / "music.mid").read_bytes() == (folder / "takes/take-1.mid").read_bytes()
    kept = measure(read_midi(folder / "music.mid"), TINY.seconds)
    assert kept.notes == outcome.takes[0].notes


def test_writes_down_every_number(ran: tuple[Path, Outcome]) -> None:
    folder, outcome = ran
    written = json.loads((folder / "metrics.json").read_text())
    assert written["validation"]["whole"]["ppl"] == outcome.assessment.whole.ppl
    assert written["validation"]["bigram"]["tokens"] == outcome.assessment.whole.tokens
    assert [each["by"] for each in written["takes"]] == [OWN] * TINY.takes + [GUEST] * TINY.takes
    assert [each["repeated"] for each in written["takes"]] == [each.to_dict() for each in outcome.repetition]
    assert written["validation"]["recall"]["kinds"]["exact"]["returns"] > 0
    assert [each["name"] for each in written["takes"][0]["compared"]] == list(ESSENTIAL)
    assert [each["name"] for each in written["music"]["music"]] == [f"take {i + 1}" for i in range(2 * TINY.takes)]
    assert [each["name"] for each in written["music"]["music"][0]["numbers"]] == list(NUMBERS)
    assert (written["failures"], written["remarks"]) == (outcome.failures, outcome.remarks)
    assert sum(written["seconds"].values()) > 0


def test_a_guest_that_cannot_play_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_demo(tmp_path, TINY, guests={GUEST: tmp_path / "nowhere"})
    with pytest.raises(ValueError, match=f"guests: expected names other than '{OWN}'"):
        run_demo(tmp_path, TINY, guests={OWN: tmp_path})
    assert [path.name for path in tmp_path.iterdir()] == [demo.DEMO_MARK]


def test_its_page_says_what_is_measured(ran: tuple[Path, Outcome]) -> None:
    folder, outcome = ran
    page = (folder / "index.html").read_text(encoding="utf-8")
    for score in (outcome.assessment.whole, outcome.assessment.bigram):
        assert score is not None
        assert f'<dd class="value">{score.ppl:.1f} ' in page
    assert all(escape(failure.replace("_", " ")) in page for failure in outcome.failures + outcome.remarks)
    assert outcome.probed.krcu is not None
    assert "KRCU: loss with the memory cleared minus loss, by position from 64 to 512 tokens" in page
    assert all(each.title in unescape(page) for each in outcome.group.music[0].quotations)
    assert page.count("<figure>") == page.count('<svg role="img" aria-label') == 7
    assert leads_outside(Outline(folder / "index.html")) == []
    assert len(page) < 1e6


def test_its_page_tells_what_memory_gains(ran: tuple[Path, Outcome]) -> None:
    folder, outcome = ran
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert outcome.probed.recall is not None
    bins = outcome.probed.recall.distance_bins("exact")
    assert bins
    assert max(each.start for each in bins) < max(demo.DEMO_MODEL.schedule.horizons)
    section = page[page.index('<h2 id="memory">') :]
    assert section.index("</section>") > 0
    for each in bins:
        assert f"A theme of {each.start:,} to {each.stop:,} tokens ago" in section
        assert f'<dd class="value">{round(each.mean, 3) + 0.0:+.3f} ' in section
    assert page.index('<h2 id="memory">') < page.index('<h2 id="numbers">')  # before all else but the music


@pytest.mark.parametrize(
    ("interval", "said", "aside"),
    [
        ((0.1, 0.3), "What comes is 1.22 times as likely", "+0.100 to +0.300 (95 %)"),
        ((-0.1, 0.5), "The interval holds zero: no gain is shown.", "-0.100 to +0.500 (95 %)"),
        ((-0.3, -0.1), "The whole interval is below zero", "-0.300 to -0.100 (95 %)"),
        (None, "There are too few pieces to tell chance from gain.", ""),
    ],
    ids=["gain", "chance", "harm", "unknown"],
)
def test_a_gain_is_told_by_its_interval(interval: tuple[float, float] | None, said: str, aside: str) -> None:
    told = _gain(Bin(128, 256, 1000, 9, 0.2, interval), seconds=0.025)
    assert (told.name, told.value, told.aside) == ("A theme of 128 to 256 tokens ago", "+0.200", aside)
    assert told.sentence.startswith(said)
    assert "About 3 to 6 s before; 1,000 tokens of 9 pieces." in told.sentence
    assert _gain(Bin(4096, None, 1, 1, 0.2, None), seconds=0.025).name == "A theme of 4,096 tokens ago or more"


def test_its_page_plays_all_takes_of_both_models(ran: tuple[Path, Outcome], tmp_path: Path) -> None:
    """Each has a button and a MIDI file of its notes; the kept one comes first."""
    folder, outcome = ran
    outline = Outline(folder / "index.html")
    numbers = [int(link["download"].removeprefix("take-").removesuffix(".mid")) for link in outline.of("a")]
    assert numbers == list(range(1, 2 * TINY.takes + 1))
    labels = [each["aria-label"] for each in outline.of("button") if "data-name" in each]
    assert labels == [f"Play Take {number}" for number in numbers]
    (script,) = (text for tag, text in outline.texts if tag == "script" and text.startswith("["))
    for number, link, shown in zip(numbers, outline.of("a"), json.loads(script), strict=True):
        content = base64.b64decode(link["href"].removeprefix("data:audio/midi;base64,"), validate=True)
        assert content == (folder / "takes" / f"take-{number}.mid").read_bytes()
        (tmp_path / "take.mid").write_bytes(content)
        assert len(read_midi(tmp_path / "take.mid").notes) == len(shown["notes"]) == outcome.takes[number - 1].notes
    assert [text for tag, text in outline.texts if tag == "h3"][:2] == [
        OWN,
        GUEST,
    ]


def test_its_page_tells_what_each_take_plays_again(ran: tuple[Path, Outcome]) -> None:
    folder, outcome = ran
    page = (folder / "index.html").read_text(encoding="utf-8")
    for number, each in enumerate(outcome.repetition, 1):
        assert each.name == f"take {number}"
        if len(each.corpus):
            assert f"{each.name} {percent(each.share)} (the corpus {percent(np.median(each.corpus))}, shuffled " in page
    assert page.count("of its notes repeat what came long before") == sum(
        not np.isnan(each.share) for each in outcome.repetition
    )


def test_finds_that_a_model_of_two_steps_makes_no_music(ran: tuple[Path, Outcome]) -> None:
    assert any("as in the corpus" in remark for remark in ran[1].remarks)


def test_replaces_only_an_older_demonstration(ran: tuple[Path, Outcome], tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="--force replaces it"):
        run_demo(ran[0], TINY)
    folder = tmp_path / "copy"
    shutil.copytree(ran[0], folder, symlinks=True)
    for name in ("thesis.tex", "takes/mine.mid", "probes/mine.png"):
        (folder / name).write_text("precious")
        with pytest.raises(FileExistsError, match=rf"demonstration alone, got one with {re.escape(name)}"):
            run_demo(folder, TINY, force=True)
        assert (folder / name).read_text() == "precious"
        (folder / name).unlink()
    demo._make_room(folder, force=True)
    assert [path.name for path in folder.iterdir()] == [demo.DEMO_MARK]


def test_what_a_desktop_drops_is_nobodys(
    ran: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(ran[0], folder, symlinks=True)
    for place in (".", "takes", "probes", "run", "run/checkpoints", "run/last"):
        for name in sorted(DROPPINGS):
            (folder / place / name).write_bytes(b"where icons lie")
    monkeypatch.setattr(demo, "_demonstrate", lambda folder, *_: {path.name for path in folder.iterdir()})
    assert run_demo(folder, TINY, force=True) == {demo.DEMO_MARK, demo.RUN, *DROPPINGS}
    assert not (folder / "run" / "last").is_symlink()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").touch()
    assert run_demo(tmp_path / "new", TINY) == {demo.DEMO_MARK, ".DS_Store"}


@pytest.mark.parametrize("place", [".", "takes", "probes"])
def test_what_a_killed_demonstration_left_is_its_own(
    ran: tuple[Path, Outcome], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(ran[0], folder, symlinks=True)
    partial = folder / place / ".partial-0a_bcdef"
    partial.mkdir()
    half = partial / {".": demo.CORPUS, "takes": "take-1.mid", "probes": "krcu.png"}[place]
    half.write_bytes(b"half of it")
    (partial / IN_USE).touch()
    (partial / "mine.png").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"got one with .*\.partial-0a_bcdef/mine\.png"):
        run_demo(folder, TINY, force=True)
    assert half.exists()
    (partial / "mine.png").unlink()
    monkeypatch.setattr(demo, "_demonstrate", lambda folder, *_: sorted(path.name for path in folder.iterdir()))
    assert run_demo(folder, TINY, force=True) == [demo.DEMO_MARK]


def test_no_file_of_it_is_there_in_part(
    ran: tuple[Path, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write is the one that the disk has no room for."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(demo, "write_wav", full)
    with pytest.raises(OSError, match="No space left"):
        run_demo(tmp_path, TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        demo.DEMO_MARK,
        "corpus.tokens",
        "run",
        "training.png",
        "probes",
        "takes",
    }
    run_ended = [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
    assert run_ended == []


def test_a_folder_without_its_mark_is_somebody_elses(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("precious")
    for force in (False, True):
        with pytest.raises(OccupiedError, match="expected an empty folder or that of a demonstration"):
            run_demo(tmp_path, TINY, force=force)
    assert (tmp_path / "metrics.json").read_text() == "precious"


def test_one_writer_at_a_time(ran: tuple[Path, Outcome]) -> None:
    before = {path: path.read_bytes() for path in ran[0].rglob("*") if path.is_file()}
    with claimed(ran[0], demo.DEMO_MARK, "a demonstration"), pytest.raises(OccupiedError, match="nobody writes into"):
        run_demo(ran[0], TINY, force=True)
    with RunFolder(ran[0] / "run").claimed(), pytest.raises(OccupiedError, match="nobody writes into"):
        run_demo(ran[0], TINY, force=True)
    assert {path: path.read_bytes() for path in ran[0].rglob("*") if path.is_file()} == before


def an_outcome(
    ppl: float, bigram: float, silence: float, learns: bool = True, figures: float = 0.4, pieces: int = 99
) -> Outcome:
    def score(value: float) -> Evaluation:
        return Evaluation((0,), (np.full(10, np.log(value), np.float32),))

    def compared(figures: float) -> Compared:
        verdict = OrderVerdict((OrderNumber("figures", figures, 0.4, 0.6),), 0.5 if figures <= 0.6 else 0.01, pieces)
        return Compared(
            "take", measure(Performance(np.array([(0, 1, 60, 64)], NOTE_DTYPE)), 1.0), [], verdict, {}, [], [], [], []
        )

    order = UsualOrder(np.empty((0, 3)), np.empty(0, np.int64))
    return Outcome(
        corpus=PrepareReport(Path("corpus"), {}, {}, 0.0, 0, (), ()),
        run=Run(),
        probed=Probed(
            "model", "run/best", "digest", Span((8,), 16), Assessment("validation", score(ppl), None, score(bigram))
        ),
        tries=12,
        takes=(),
        by=(OWN, OWN),
        repetition=(),
        music=((Comparison("silence", silence, 0.0, 0.1, 99),), (Comparison("silence", 0.9, 0.0, 0.1, 99),)),
        group=Group(
            Reference("train", 1.0, 1, {}, order, Profile(1.0, 1, {}, {}), [], 0, None),
            [compared(figures), compared(1.0)],
        ),
        learns=learns,
        controls=Controls(1.0, 1.0, 0.05),
        seconds={},
    )


def test_fails_by_the_number_that_is_wrong() -> None:
    fine = an_outcome(ppl=20, bigram=30, silence=0.05)
    assert (fine.failures, fine.remarks) == ([], [])
    assert an_outcome(ppl=31, bigram=30, silence=0.05).failures == [
        "validation PPL 31.00 is not below the bigram's 30.00"
    ]
    assert an_outcome(ppl=31, bigram=30, silence=0.05, learns=False).failures == []
    assert an_outcome(ppl=np.inf, bigram=30, silence=0.05).failures != []
    assert an_outcome(ppl=20, bigram=30, silence=0.5).failures == []
    assert an_outcome(ppl=20, bigram=30, silence=0.5).remarks == [
        "silence 0.5 is not within 0 .. 0.1, as in the corpus"
    ]
    assert an_outcome(ppl=20, bigram=30, silence=0.05, figures=0.98).remarks == [
        "take 1: it is noise, not music: figures 0.98 (usual are up to 0.60)"
    ]
    assert an_outcome(ppl=20, bigram=30, silence=0.05, figures=0.98, pieces=FEWEST_PIECES - 1).remarks == []
    assert len(an_outcome(ppl=20, bigram=30, silence=np.nan).remarks) == 1


def test_prefers_what_is_usual_and_then_what_is_in_the_middle() -> None:
    def take(keys: int, every: float) -> Take:
        notes = np.zeros(int(20 / every), NOTE_DTYPE)
        notes["onset"] = np.arange(len(notes)) * every
        notes["offset"] = notes["onset"] + every
        notes["pitch"] = 60 + np.arange(len(notes)) % keys
        notes["velocity"] = 64
        return Take(np.empty(0, np.uint16), Performance(notes), 0, 0.0, 0, 20.0, 0.0, "seconds")

    ranges = {
        "notes_per_second": Range(2.0, 10.0, 99),
        "pitch_range": Range(10.0, 30.0, 99),
        "silence": Range(0.0, 0.2, 99),
    }
    middle, edge, sparse = take(21, 0.16), take(12, 0.11), take(21, 1.0)
    order = UsualOrder(np.empty((0, 3)), np.empty(0, np.int64))  # which cannot tell what is noise
    tried = [sparse, edge, middle, edge, sparse, edge]
    assert demo._best(tried, replace(TINY, tries=3, takes=2), ranges, order) == [middle, edge, edge, edge]
    assert demo._best(tried[:3], replace(TINY, tries=3, takes=3), ranges, order) == [middle, edge, sparse]


WARNING = "warning: the best take is not like the corpus: silence 0.5 is not within 0 .. 0.1, as in the corpus\n"


@pytest.mark.parametrize(
    ("ppl", "silence", "exits", "said"),
    [
        (20, 0.05, 0, ""),
        (20, 0.5, 0, WARNING),
        (31, 0.05, 1, "dsmr: validation PPL 31.00 is not below the bigram's 30.00\n"),
    ],
    ids=["music", "unlike", "worse than a bigram"],
)
def test_the_command_exits_by_the_checks(
    ppl: float,
    silence: float,
    exits: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcome = an_outcome(ppl=ppl, bigram=30, silence=silence)
    outcome = replace(outcome, run=Run(step=1, best_ppl=20.0, best_step=1))
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: outcome)
    assert app.run(["demo", "--out", str(tmp_path)]) == exits
    out, error = capsys.readouterr()
    assert f"take 1 (kept), {OWN}" in out
    assert error == said


def test_the_command_leaves_other_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    assert app.run(["demo", "--out", str(tmp_path), "--force"]) == 2
    assert capsys.readouterr().err.startswith(f"dsmr: {tmp_path}: expected a folder for the demonstration alone")
