"""Every law runs on every back end: a new one joins by its name in `dsmr_kernels.backends.FOR_DEVICE`.

Triton's kernels run on a GPU, under the marker `gpu`; without one, in a process of their own, in Triton's interpreter:
`TRITON_INTERPRET=1 python -m pytest tests/dsmr_kernels/test_laws.py tests/triton`.
"""

import pytest

from dsmr_kernels import backends
from dsmr_kernels.backends.cpu import library
from tests.interpreter import INTERPRETED

ON_GPU = [pytest.param("triton", marks=pytest.mark.gpu)]


@pytest.fixture(scope="session", params=["triton"] if INTERPRETED else [*backends.FOR_DEVICE["cpu"], *ON_GPU])
def impl(request: pytest.FixtureRequest) -> str:
    if request.param == "cpu" and (reason := library.absence()):
        pytest.skip(reason)
    return request.param
