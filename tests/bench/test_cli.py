"""The command line, from a shell, with nothing but what a bare machine has."""

from __future__ import annotations

import os

import pytest
import torch

from bench import models
from bench.__main__ import MEASURED, _gpu, _measure, _parser, main
from bench.attention import cases
from bench.harness import results


def test_a_quick_run_writes_results_and_a_table(bench, tmp_path):
    done = bench("decode", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (made,) = results.load(tmp_path / "decode-cpu-1.jsonl")
    assert (made.command, made.threads, made.quick) == ("decode", 1, True)
    assert {row.status for row in made.rows} == {"timed", "unavailable"}
    assert "ring + matmul" in done.stdout
    assert "GFLOP" in done.stdout


def test_without_rich_the_table_is_plain_text(bench, tmp_path):
    done = bench("overhead", "--quick", "--out", str(tmp_path), bare=True)
    assert done.returncode == 0, done.stderr
    assert "recurrent_attention, eager" in done.stdout
    assert "│" not in done.stdout


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores to pin to"
)
def test_each_thread_count_has_a_process_and_a_file_of_its_own(bench, tmp_path):
    done = bench("append", "--quick", "--threads", "1,2", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [results.load(tmp_path / f"append-cpu-{n}.jsonl")[0].threads for n in (1, 2)] == [1, 2]


def test_a_wrong_contender_fails_the_run_and_has_no_time(bench, tmp_path):
    done = bench("attention", "--quick", "--contenders", "broken", "ours", "--out", str(tmp_path))
    assert done.returncode == 1, done.stderr
    rows = [r for r in results.load(tmp_path / "attention-cpu-1.jsonl")[0].rows if r.contender == "broken on purpose"]
    assert rows
    assert all(row.status == "wrong" and not row.seconds for row in rows)


@pytest.mark.parametrize("arguments", [["decode", "--threads", "0"], ["decode", "--threads", "4096"], ["nothing"]])
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["gpu", "--device", "xpu"], "expected cpu or cuda"),
        (["decode", "--device", "cuda:99"], "expected a GPU that PyTorch"),
        (["attention", "--quick", "--shapes", "T3"], "expected something like B1-T256"),
        (["train", "--quick", "--shapes", "T3-M4-fp32"], "train has no shapes to choose"),
        (["decode", "--quick", "--contenders", "ours", "theirs"], "got theirs"),
        (["report", "--results", "no/such/folder"], "no/such/folder"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(bench, arguments, expected):
    done = bench(*arguments)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="it shows what is said where there is no GPU")
@pytest.mark.parametrize("command", ["gpu", *MEASURED])
def test_without_a_gpu_every_command_says_so_in_one_line(command, capsys):
    device = [] if command == "gpu" else ["--device", "cuda"]
    assert main([command, *device]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a GPU that PyTorch" in line
    assert "found 0" in line


def test_every_command_of_the_registry_can_be_asked_for():
    assert set(MEASURED) == {"roof", *cases.COMMANDS, *models.COMMANDS}


def test_results_that_exist_are_replaced_only_if_told_to(tmp_path, capsys):
    file = tmp_path / "append-cpu-1.jsonl"
    file.write_text("measured on a quiet night")
    for arguments in (
        ["append", "--quick", "--out", str(tmp_path)],
        ["gpu", "--device", "cpu", "--out", str(tmp_path)],
    ):
        (tmp_path / "gpu.md").touch()
        assert _measure_here(arguments) == 2
        assert "exists already; --force replaces it" in capsys.readouterr().err
    assert file.read_text() == "measured on a quiet night"
    assert _measure_here(["append", "--quick", "--force", "--out", str(tmp_path)]) == 0
    assert results.load(file)[0].quick


def test_a_quick_run_without_a_folder_leaves_the_results_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    assert _measure_here(["append", "--quick"]) == 0
    assert "not written: --quick without --out" in capsys.readouterr().out
    assert main(["gpu", "--device", "cpu", "--quick"]) == 2
    assert "gpu --quick: expected --out" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def _measure_here(arguments):
    """The command in this process, whatever cores it may use."""
    parsed, threads = _parser().parse_args(arguments), torch.get_num_threads()
    try:
        return _gpu(parsed) if parsed.command == "gpu" else _measure(parsed)
    finally:
        torch.set_num_threads(threads)
