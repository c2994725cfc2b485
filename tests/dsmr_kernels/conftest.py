"""Every law runs on every back end: a new one joins by its name in `dsmr_kernels.backends.FOR_DEVICE`."""

import pytest

from dsmr_kernels import backends


@pytest.fixture(scope="session", params=backends.NAMES)
def impl(request: pytest.FixtureRequest) -> str:
    return request.param
