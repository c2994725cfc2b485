"""Tests of what only the Triton back end has. `impl` makes a test run on a GPU, or in the interpreter."""

import pytest

from tests.interpreter import INTERPRETED


@pytest.fixture(params=[pytest.param("triton", marks=() if INTERPRETED else pytest.mark.gpu)])
def impl(request: pytest.FixtureRequest) -> str:
    return request.param
