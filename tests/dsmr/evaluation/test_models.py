"""Several models beside each other: paired differences that are known, names, and the command."""

from __future__ import annotations

import inspect
import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from dsmr.cli import app, evaluate
from dsmr.cli.scores import print_models
from dsmr.corpus.store import TokenStore
from dsmr.evaluation.bootstrap import holm
from dsmr.evaluation.figures import KRCU_FIGURE, POSITION_FIGURE, RECALL_FIGURE, RETURNS_FIGURE, TRUNCATION_FIGURE, draw
from dsmr.evaluation.models import Probed, Questions, Span, differences, labels, probe
from dsmr.evaluation.probes.krcu import PUBLISHED_RESETS, Resets
from dsmr.evaluation.probes.returns import SKIP
from dsmr.evaluation.probes.truncation import PUBLISHED_CUTS, Cuts
from dsmr.model.checkpoint import save_checkpoint
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.model.transformer import Transformer
from dsmr_kernels import Retention
from tests.dsmr.evaluation.copying import CONTEXT, COPIED, FLOAT32, GUESSED, Copier, Writer

NEAR, FAR, LONG, FAR_LONG = 60, 200, 40, 30


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    writer = Writer(tmp_path_factory.mktemp("store") / "corpus.tokens")
    for events in range(420, 450, 5):  # six pieces: the fewest that have intervals and tests
        writer.piece(events, (10 + NEAR, 10, LONG, 0), (160 + FAR, 160, FAR_LONG, 0))
    return writer.store()


@pytest.fixture(scope="module")
def models(store: TokenStore) -> list[Probed]:
    """Copiers that remember the far theme, the near one, and none."""
    resets, cuts = Resets((256,), width=64, end=512), Cuts((100,), (200, 300, 500), block=32, blocks=9)
    questions = Questions(returns=True, reset_every=None, resets=resets, cuts=cuts, recall=9)
    return [
        probe(Copier(memory), store, "test", questions, label=str(memory), checkpoint=f"runs/{memory}", digest="")
        for memory in (FAR + CONTEXT, FAR + CONTEXT - 1, 1)
    ]


def test_models_differ_where_their_memories_do(models: list[Probed]) -> None:
    found = {(each.quantity, each.first, each.second): each.difference for each in differences(models)}
    copied = GUESSED - COPIED
    far, near, none = (model.label for model in models)
    assert found["gain, exact, 0-128", far, near].value == 0
    assert found["gain, exact, 0-128", far, near].p == 1
    for pair in ((far, near), (far, none)):
        assert found["gain, exact, 128-256", *pair].value == pytest.approx(copied, abs=2 * FLOAT32)
        assert found["gain, exact, 128-256", *pair].p == 2 / 2**6
    assert found["gain, exact, 0-128", near, none].value == pytest.approx(copied, abs=2 * FLOAT32)
    # Both returns pooled, without the first 16 tokens of each.
    share = (FAR_LONG - 16) / (FAR_LONG - 16 + LONG - 16)
    assert found["gain, exact", far, near].value == pytest.approx(share * copied, abs=2 * FLOAT32)
    # The NLL differs by the far theme alone: its tokens and the one after it, which the far copier gets wrong.
    nll = {model.label: model.assessment.whole.nll for model in models}
    assert found["NLL", far, near].value == pytest.approx(nll[far] - nll[near], abs=1e-12)
    # After the reset at 256 only the far theme is missed, and only by who could remember it.
    assert found["KRCU-AUC", near, none].value == 0
    assert found["KRCU, 64-128", far, near].value > 0
    assert found["KRCU, 64-128", far, none].value == pytest.approx(found["KRCU, 64-128", far, near].value)
    assert found["keep 100, 300-500", far, near].value > 0
    assert found["recall, exact, 128-256", far, near].value == pytest.approx(copied, abs=2 * FLOAT32)
    assert found["recall, exact, 128-256", near, none].value == 0
    assert found["keep 100, 200-300", far, none].value == 0
    assert not any("transposed" in quantity for quantity, _, _ in found)  # there are none


def test_every_probe_has_intervals_over_the_pieces(models: list[Probed]) -> None:
    copied = GUESSED - COPIED
    far = models[0]
    assert far.returns is not None
    assert far.recall is not None
    assert far.krcu is not None
    assert far.truncation is not None
    for found in (far.returns, far.recall):
        (at_its_distance,) = (each for each in found.distance_bins("exact") if each.start == 128)
        assert at_its_distance.interval == pytest.approx((copied, copied), abs=2 * FLOAT32)
    low, high = far.krcu.auc_interval or (0, 0)
    assert 0 < low <= far.krcu.auc <= high
    assert all(each.interval is not None for each in (*far.krcu.bins, *far.truncation.row(0)))


def test_p_values_are_corrected_for_the_whole_table(models: list[Probed]) -> None:
    found = differences(models)
    assert [each.p_holm for each in found] == holm([each.difference.p for each in found])
    assert {each.p_holm for each in found} == {1.0}  # six pieces say too little for so many rows


def test_a_baseline_is_what_all_others_are_compared_with(models: list[Probed]) -> None:
    far, near, none = (model.label for model in models)
    found = differences(models, baseline=near)
    assert {(each.first, each.second) for each in found} == {(far, near), (none, near)}
    pairs = {(each.quantity, each.first, each.second): each.difference for each in differences(models)}
    for each in found:
        if each.first == far:
            assert each.difference == pairs[each.quantity, far, near]
        else:
            assert each.difference.value == -pairs[each.quantity, near, none].value
    with pytest.raises(ValueError, match=f"baseline: expected one of several models, {far}, {near}, {none}, got 'x'"):
        differences(models, baseline="x")


def test_figures_are_drawn_also_where_a_kind_of_return_is_missing(models: list[Probed], tmp_path: Path) -> None:
    draw(models, tmp_path, "three copiers")
    for name in (POSITION_FIGURE, RETURNS_FIGURE, RECALL_FIGURE, KRCU_FIGURE, TRUNCATION_FIGURE):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_span_counts_tokens_not_entries() -> None:
    schedule = make_schedule("explicit", 3, horizons=[8, 4, 8], retention=Retention(stride=4))
    span = Span.of(ModelConfig(8, 1, 1, schedule, segment=4))
    assert span.horizons == (32, 16, 32)
    assert span.reach == schedule.receptive_field(4)


def test_schedules_that_differ_only_in_their_order_look_different(
    models: list[Probed], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    up, down = (make_schedule(name, 4, budget_tokens=8192) for name in ("progressive_up", "progressive_down"))
    assert up.horizons == down.horizons[::-1]
    ordered = [
        replace(models[0], label="model", span=Span.of(ModelConfig(8, 1, 1, schedule, segment=4)))
        for schedule in (up, down)
    ]
    tables, figures, legends = [], [], []
    monkeypatch.setattr(Figure, "savefig", lambda figure, _: figures.append(figure))
    for model in ordered:
        with redirect_stdout(io.StringIO()) as out:
            print_models([model, model])
        tables.append(next(line for line in out.getvalue().splitlines() if line.startswith("│ model ")))
        draw([model, replace(model, label="another")], tmp_path, "")
        in_figures = [text.get_text() for figure in figures for text in figure.findobj(Text)]
        legends.append({text for text in in_figures if text.startswith("model\n")})
        figures.clear()
    assert tables[0] != tables[1]
    assert legends[0]
    assert not legends[0] & legends[1]
    assert ordered[0].to_dict()["memory"] != ordered[1].to_dict()["memory"]


@pytest.mark.parametrize(
    ("checkpoints", "expected"),
    [
        (["runs/a/best"], ["runs/a/best"]),
        (["runs/a/best", "runs/b/best"], ["a", "b"]),
        (["runs/a/best", "runs/a/last"], ["best", "last"]),
        (["x/best", "y/z/best"], ["x", "y/z"]),
        (["a", "a/b"], ["a", "a/b"]),
        (["x/a/1", "x/b/2"], ["a/1", "b/2"]),
        (["owner/one", "owner/two"], ["one", "two"]),
        (["pianist", "runs/a/best"], ["pianist", "runs/a/best"]),
        (["pianist", "/runs/a/best"], ["pianist", "/runs/a/best"]),
    ],
    ids=lambda x: "-".join(x).replace("/", "."),
)
def test_names_are_what_the_paths_differ_in(checkpoints: list[str], expected: list[str]) -> None:
    assert labels(checkpoints) == expected


def run(*arguments: object, exits: int = 0) -> str:
    """Run `dsmr evaluate`; returns its stdout, or its stderr where it has to fail."""
    out, error = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(error):
        code = app.run(["evaluate", *map(str, arguments)])
    assert code == exits, out.getvalue() + error.getvalue()
    return error.getvalue() if exits else out.getvalue()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two untrained models, of other horizons and segments."""
    folder = tmp_path_factory.mktemp("runs")
    for name, horizons, segment in (("long", [64, 32], 32), ("short", [8, 8], 16)):
        torch.manual_seed(0)
        schedule = make_schedule("explicit", 2, horizons=horizons)
        save_checkpoint(folder / name / "best", Transformer(ModelConfig(16, 2, 1, schedule, segment=segment)))
    return [folder / name / "best" for name in ("long", "short")]


def test_the_command_compares_checkpoints(store: TokenStore, checkpoints: list[Path], tmp_path: Path) -> None:
    arguments = [*checkpoints, "--data", store.path, "--reset-every", 0, "--returns"]
    arguments += ["--krcu", "--reset-at", "64,256", "--krcu-bin", 64, "--krcu-end", 512]
    arguments += ["--truncation", "--context", "16,64", "--buckets", "64,128,4096", "--block", 64, "--blocks", 2]
    printed = json.loads(run(*arguments, "--json", "--out", tmp_path / "figures"))
    written = json.loads((tmp_path / "figures" / "evaluation.json").read_text())
    assert printed == written
    assert [model["label"] for model in written["models"]] == ["long", "short"]
    assert written["models"][1]["memory"] == {"horizons": [8, 8], "reach": 40}
    assert {each["quantity"] for each in written["differences"]} >= {"NLL", "gain, exact", "gain, exact, 0-128"}
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert drawn == {"evaluation.json", POSITION_FIGURE, RETURNS_FIGURE, KRCU_FIGURE, TRUNCATION_FIGURE}
    krcu, truncation = (written["models"][1][name] for name in ("krcu", "truncation"))
    assert krcu["resets"] == [64, 256]
    assert [cell["keep"] for cell in truncation["cells"]] == [16, 16, 64, 64]
    # Untrained, and of memories that reach 40 tokens: nothing remains beyond, up to rounding.
    assert [each["dnll"] for each in krcu["curve"][1:]] == pytest.approx([0] * (len(krcu["curve"]) - 1), abs=1e-5)


def test_the_command_prints_tables(store: TokenStore, checkpoints: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--krcu", "--reset-at", 300, "--krcu-bin", 64, "--truncation", "--context", 64, "--buckets", "256,512"]
    text = run(*checkpoints, "--data", store.path, "--reset-every", 0, "--returns", "--recall", 2, *arguments)
    assert "│ long " in text
    assert "6 pieces, 0 too short; 3 of 476 bins up to 30k hold tokens" in text
    assert re.search(r"│ +0-64 │ [+-]0\.\d{4} \[[+-]0\.\d{4}, [+-]0\.\d{4}\] │.*│ +384 │ +6 │", text)
    assert re.search(r"│ +64 │ +256-512 │", text)
    assert re.search(r"│ gain, exact, 128-256 +│ long - short ", text)
    assert re.search(r"│ recall, exact, 128-256 +│ long - short ", text)


def test_the_command_compares_with_a_baseline(store: TokenStore, checkpoints: list[Path]) -> None:
    arguments = [*checkpoints, "--data", store.path, "--reset-every", 0, "--json"]
    for name in ("short", checkpoints[1]):  # as the tables call it, or as it was given
        (only,) = json.loads(run(*arguments, "--baseline", name))["differences"]
        assert (only["first"], only["second"]) == ("long", "short")
        assert only["p"] == only["p_holm"]
    (other,) = json.loads(run(*arguments, "--baseline", "long"))["differences"]
    assert (other["first"], other["difference"]) == ("short", -only["difference"])
    assert "baseline: expected one of several models, long, short, got 'x'" in run(
        *arguments, "--baseline", "x", exits=2
    )
    assert "expected one of several models" in run(
        checkpoints[0], *arguments[2:], "--baseline", checkpoints[0], exits=2
    )


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_too_few_pieces_are_said_to_be_too_few(
    store: TokenStore, checkpoints: list[Path], pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    arguments = [*checkpoints, "--data", store.path, "--reset-every", 0, "--pieces", pieces]
    probes = [
        "--returns",
        "--recall",
        2,
        "--krcu",
        "--reset-at",
        300,
        "--krcu-bin",
        64,
        "--truncation",
        "--context",
        64,
    ]
    text = run(*arguments, *probes, "--buckets", "256,512")
    assert not re.search(r"\d \[", text)  # no interval
    assert not re.search(r"│ +[01]\.\d{4} │\n", text)  # no p-value
    assert text.count("too few pieces") > 20
    found = json.loads(run(*arguments, *probes, "--buckets", "256,512", "--json"))
    assert {each["p"] for each in found["differences"]} == {None}
    assert not re.search(r'"(auc_)?(ppl_)?interval(_95)?": \[', json.dumps(found))
    alone = run(checkpoints[0], *arguments[2:])
    assert re.search(r"│ whole pieces +│ +\d+\.\d\d │ too few pieces │", alone)


def test_a_model_and_itself_do_not_differ(store: TokenStore, checkpoints: list[Path], tmp_path: Path) -> None:
    shutil.copytree(checkpoints[0], tmp_path / "copy")
    found = json.loads(run(checkpoints[0], tmp_path / "copy", "--data", store.path, "--reset-every", 0, "--json"))
    (only,) = found["differences"]
    assert (only["difference"], only["interval_95"], only["p"], only["p_holm"]) == (0, [0, 0], 1, 1)


def test_a_sample_of_pieces_is_the_same_each_time(store: TokenStore, checkpoints: list[Path]) -> None:
    arguments = [checkpoints[0], "--data", store.path, "--reset-every", 0, "--pieces", 2, "--json"]
    first, again = (json.loads(run(*arguments)) for _ in range(2))
    assert first == again
    assert len(first["whole"]["pieces"]) == 2
    assert "returns" not in first


def test_the_command_explains_what_is_wrong(store: TokenStore, checkpoints: list[Path], tmp_path: Path) -> None:
    writer = Writer(tmp_path / "plain.tokens")
    writer.piece(40)
    plain = writer.store()
    long = checkpoints[0]
    assert "expected labelled returns, got none" in run(long, "--data", plain.path, "--returns", exits=2)
    assert "expected every one once" in run(long, long, "--data", store.path, exits=2)
    assert "longer than 8192 tokens" in run(long, "--data", store.path, "--krcu", exits=2)
    assert "--context: expected whole numbers separated" in run(
        long, "--data", store.path, "--truncation", "--context", "1k", exits=2
    )
    assert "exists already" in run(long, "--data", store.path, "--out", tmp_path, exits=2)


def test_defaults_of_the_command_are_the_published_ones() -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(evaluate.evaluate).parameters.items()}
    assert defaults["reset_at"] == ",".join(map(str, PUBLISHED_RESETS.at))
    assert (defaults["krcu_bin"], defaults["krcu_end"]) == (PUBLISHED_RESETS.width, PUBLISHED_RESETS.end)
    assert defaults["context"] == ",".join(map(str, PUBLISHED_CUTS.keeps))
    assert defaults["buckets"] == ",".join(map(str, PUBLISHED_CUTS.buckets))
    assert (defaults["block"], defaults["blocks"]) == (PUBLISHED_CUTS.block, PUBLISHED_CUTS.blocks)
    assert defaults["skip"] == SKIP


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (
            Questions(resets=PUBLISHED_RESETS),
            "resets: expected a piece longer than 8192 tokens, got none; the longest has 41",
        ),
        (
            Questions(cuts=PUBLISHED_CUTS),
            "buckets: expected a piece longer than 1024 tokens, got none; the longest has 41",
        ),
        (Questions(returns=True), "expected labelled returns, got none"),
        (Questions(recall=1), "expected labelled returns, got none"),
    ],
    ids=["krcu", "truncation", "returns", "recall"],
)
def test_pieces_that_will_not_do_are_refused_before_anything_is_read(
    questions: Questions, message: str, tmp_path: Path
) -> None:
    writer = Writer(tmp_path / "plain.tokens")
    writer.piece(40)
    model = Copier(1)
    with pytest.raises(ValueError, match=message):
        probe(model, writer.store(), "test", questions, label="", checkpoint="", digest="")
    assert model.fed == 0


def test_interval_of_a_position_is_drawn_and_written(store: TokenStore, checkpoints: list[Path]) -> None:
    found = json.loads(run(checkpoints[0], "--data", store.path, "--reset-every", 0, "--json"))
    (only,) = found["whole"]["by_position"]
    assert only["interval_95"][0] < only["nll"] < only["interval_95"][1]
    assert np.isfinite(only["interval_95"]).all()
