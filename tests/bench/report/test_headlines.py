"""Headlines: README's four cases of the committed results, cases in words, and losses that are not hidden."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.attention.cases import COMMANDS, AttentionCase, cases
from bench.attention.shapes import Shape
from bench.harness import results
from bench.harness.results import FOLDER
from bench.models import generate, train
from bench.report import headlines
from bench.report.duels import duels, own_duel
from tests.bench import made


@pytest.mark.parametrize("folder", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
def test_the_committed_results_show_one_case_of_each_kind(folder: Path) -> None:
    runs = results.load_machine(folder.glob("*.jsonl"))
    lines = headlines.block(runs)
    kinds = [re.match(r"\| (decode|attention|training step|generation) ", line) for line in lines[2:6]]
    assert [kind[1] for kind in kinds] == ["decode", "attention", "training step", "generation"]
    assert f"{len(duels(runs))} like-for-like cases; " in lines[7]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_device_has_a_case_for_each_headline(device: str) -> None:
    listed = [case for command in COMMANDS for case in cases(command, torch.device(device), False)]
    listed += [case for group in train.cases(torch.device(device), False) for case in group]
    listed += generate.cases(torch.device(device), False)
    names = {f"{case.task} {case.name}" for case in listed}
    assert [sum(bool(re.fullmatch(pattern, name)) for name in names) for pattern in headlines.CASES] == [1] * 4


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (AttentionCase("decode", Shape(1, 4096)), "decode one token, 4,096 memory entries, 8 heads of 64, fp32"),
        (
            AttentionCase("forward", Shape(16, 8, "bf16", 1, 4, lanes=3, window="token"), graph=True),
            "attention forward of 16 tokens, 8 memory entries, 4 heads of 64 (1 KV head), bf16, 3 lanes, sliding "
            "window, as a CUDA graph",
        ),
        (
            AttentionCase("decode", Shape(1, 8, heads=1, kv_heads=1), hot=True),
            "1 head of 64, fp32, inputs in the cache",
        ),
    ],
)
def test_a_case_in_words(case: AttentionCase, told: str) -> None:
    assert headlines.words(made.row(case, "ours cpu", 1.0)).endswith(told)


def test_every_case_of_a_duel_has_words_of_its_own() -> None:
    for device in map(torch.device, ("cpu", "cuda")):
        listed = [case for command in ("attention", "decode") for case in cases(command, device, False)]
        listed += [case for group in train.cases(device, False) for case in group]
        assert len({headlines.words(made.row(case, "ours cpu", 1.0)) for case in listed}) == len(listed)


def test_losses_come_first() -> None:
    rows = []
    for horizon, lead in ((1024, 1.5), (4096, 0.5), (16384, 3.0)):
        case = AttentionCase("decode", Shape(1, horizon))
        rows += [
            made.row(case, "ours cpu", 1.0),
            made.row(case, "peer", lead, against={"ours cpu": [lead, lead, lead]}),
        ]
    run = replace(made.RUN, rows=rows)
    sentence = headlines.margins(duels([run]))
    assert sentence.startswith("Fastest in 2 of 3 like-for-like cases; largest losses: 0.50x (decode one token, 4,096 ")
    assert sentence.count("x (") == 3
    assert "Fastest in all 2 like-for-like cases; smallest margins: 1.50x" in headlines.margins(
        [one for one in duels([run]) if one.lead[1] > 1]
    )


def test_ours_stand_against_ours_only_where_nobody_else_does() -> None:
    case = generate.cases(torch.device("cpu"), True)[0]
    slow = made.row(case, "ours in PyTorch", 4.0, against={"ours natively": [3.0, 4.0, 5.0]})
    fast, rough = made.row(case, "ours natively", 1.0), made.row(case, "ours in int8", 0.1, like_for_like=False)
    found = own_duel(made.RUN, [slow, fast, rough])
    assert (found.ours, found.peer, found.lead) == (fast, slow, (3.0, 4.0, 5.0))
    assert own_duel(made.RUN, [fast, rough]) is None
    assert duels([replace(made.RUN, rows=[slow, fast, rough])]) == []
