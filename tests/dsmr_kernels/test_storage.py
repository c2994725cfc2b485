"""Quantised storage: how far it may be from what it stores."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dsmr_kernels.storage import QUANTISED, quantise


@given(
    rows=st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), min_size=1, max_size=8),
    storage=st.sampled_from(sorted(QUANTISED)),
)
def test_quantisation_errs_by_at_most_half_a_step(rows: list[list[float]], storage: str) -> None:
    """int8: half a step of absmax / 127. e4m3: half a unit of the third mantissa bit or of the smallest subnormal."""
    x = torch.tensor(rows)
    values, scale = quantise(x, QUANTISED[storage].dtype)
    error = (values.double() * scale[:, None].double() - x.double()).abs()
    step = scale[:, None].double()
    half = step / 2 if storage == "int8" else torch.maximum(x.double().abs() * 2**-4, step * 2**-10)
    slack = x.double().abs() * 2**-22 + 2**-149  # the scale and the division are rounded to float32
    assert (error <= half + slack).all()
