"""The verdict on a model by its checkpoint: who is warned of, and who is not."""

from __future__ import annotations

from typing import Any

import pytest

from dsmr.model.verdict import expect_noise


@pytest.mark.parametrize(
    ("training", "verdict"),
    [
        (
            {"step": 9, "last_ppl": 54.321, "bigram_ppl": 46.0},
            "this model predicts worse than a bigram (PPL 54.32 against 46.00): expect noise; train it longer",
        ),
        ({"step": 9, "last_ppl": 46.0, "best_ppl": 40.0, "bigram_ppl": 46.0}, "worse than a bigram"),
        ({"step": 9, "last_ppl": 45.9, "bigram_ppl": 46.0}, None),
        ({"step": 0, "last_ppl": None, "bigram_ppl": None}, "this model has not been trained: expect noise"),
        ({"step": 9, "last_ppl": None, "bigram_ppl": None}, None),
        ({"step": 9, "last_ppl": 54.321}, None),
        ({"step": 7}, None),
        ({}, None),
        ({"step": 9, "last_ppl": "much", "bigram_ppl": [1]}, None),
    ],
    ids=["worse", "equal", "better", "untrained", "unvalidated", "older", "others", "silent", "strange"],
)
def test_verdict(training: dict[str, Any], verdict: str | None) -> None:
    found = expect_noise(training)
    assert found is None if verdict is None else verdict in str(found)
