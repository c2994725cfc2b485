from __future__ import annotations

import numpy as np
import pytest

from dsmr.model.schedule_bars import schedule_bars
from dsmr.model.schedules import make_schedule
from dsmr.plots import COLOURS
from dsmr_kernels import Retention
from tests.dsmr.pictures import is_colour, picture

pytestmark = pytest.mark.usefixtures("no_pyplot")


def test_schedule_bars_are_in_proportion_to_horizons(tmp_path):
    schedule_bars([make_schedule("explicit", 3, horizons=[400, 0, 100])], tmp_path / "bars.png")
    bars = is_colour(picture(tmp_path / "bars.png"), COLOURS[0])
    lengths = bars.sum(1)
    drawn = np.flatnonzero(lengths)
    layers = np.split(drawn, np.flatnonzero(np.diff(drawn) > 1) + 1)
    top, bottom = (np.median(lengths[layer]) for layer in layers)  # the lowest layer at the bottom, layer 1 empty
    assert bottom / top == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("count", [2, 4, 7], ids=lambda n: f"{n}-schedules")
def test_many_schedules_share_a_figure(tmp_path, count):
    schedules = [make_schedule("uniform", 2 + n, retention=Retention(1 + n)) for n in range(count)]
    schedule_bars(schedules, tmp_path / "bars.png")
    assert is_colour(picture(tmp_path / "bars.png"), COLOURS[0]).sum() > 1000 * count
