import io

from rich.console import Console

from dsmr.cli.schedule_table import schedule_table
from dsmr.model.schedules import MemoryFormat, Schedule, make_schedule
from dsmr_kernels import Retention

BF16 = MemoryFormat(kv_heads=2, head_dim=64, storage="bf16")


def rendered(schedule: Schedule, **options: object) -> str:
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(schedule_table(schedule, **{"memory": BF16, "segment": 1024, **options}))
    return console.export_text()


def test_the_drawing_tells_what_a_schedule_costs():
    text = rendered(make_schedule("two_scale", 8, budget_tokens=19456))
    rows = [line.split() for line in text.splitlines()]
    assert ["│", "0", "│", "8,192", "│"] in [row[:5] for row in rows]
    assert "receptive field: the last token of a segment can depend on 23,552 tokens" in text
    assert "9.5 MiB" in text  # 19,456 entries x 2 heads x 64 x 2 (K and V) x 2 bytes
    assert "this is 7.4% of it: 92.6% saved" in text
    bars = [next(line for line in text.splitlines() if f"│     {layer} │" in line).count("━") for layer in range(8)]
    assert bars == [32, 32, 2, 2, 2, 2, 2, 2]  # in proportion to the horizons


def test_the_drawing_of_memory_in_one_layer_and_of_retention():
    text = rendered(make_schedule("perceiver_like", 2, retention=Retention(4, "random")), longest=100)
    assert "keeps a random one of every 4 tokens" in text
    assert "saved" not in text
    assert "0 B" in text
