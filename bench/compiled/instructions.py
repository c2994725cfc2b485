"""Instructions that the native attention kernels execute: a guard against slow-downs that no noise can hide or feign.

    python bench/compiled/instructions.py check build/native/tests/native/driver
    python bench/compiled/instructions.py update build/native/tests/native/driver

`check` fails if a case executes more than its budget in `bench/compiled/instructions.json` and 3 %. `update` writes
the budget anew: commit it with the change that is the reason. Counts depend on the compiler, so they are compared for
the compiler of the budget only. valgrind knows no AVX-512: that path is guarded by the benchmarks alone.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

BUDGET = Path(__file__).with_suffix(".json")
ISAS = ("avx2", "scalar")
TOLERANCE = 0.03


def main() -> int:
    """Check or update; the exit code is 1 if a case is over its budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "update"])
    parser.add_argument("driver", type=Path, help="the test driver, of a build with -DDSMR_TESTS=ON")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed: instructions cannot be counted")
    compiler = _lines(arguments.driver, "compiler")[0]
    if arguments.command == "update":
        budget = {"compiler": compiler, "instructions": count_all(arguments.driver)}
        BUDGET.write_text(json.dumps(budget, indent=2) + "\n")
        return 0
    budget = json.loads(BUDGET.read_text())
    if compiler != budget["compiler"]:
        print(f"*** NOT CHECKED: the budget is for {budget['compiler']}, the driver was built by {compiler}")
        return 0
    return compare(count_all(arguments.driver), budget["instructions"])


def count_all(driver: Path) -> dict[str, int]:
    """Instructions of every case on every instruction set that valgrind runs here, `{"isa/case": count}`."""
    available = subprocess.run(
        ["valgrind", "--tool=none", "-q", driver, "isas"], check=True, capture_output=True, text=True
    ).stdout.split()
    cases = _lines(driver, "cases")
    return {f"{isa}/{case}": count(driver, isa, case) for isa in ISAS if isa in available for case in cases}


def count(driver: Path, isa: str, case: str) -> int:
    """Instructions that a case executes inside the library's functions."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--collect-atstart=no"]
    command += [f"--toggle-collect=dsmr_kernels_{name}" for name in ("forward", "backward")]
    result = subprocess.run([*command, driver, "count", isa, case], check=True, capture_output=True, text=True)
    found = re.search(r"Collected : (\d+)", result.stderr)
    if found is None or int(found[1]) == 0:
        sys.exit(f"valgrind counted nothing for {isa}/{case}:\n{result.stderr}")
    return int(found[1])


def compare(counts: dict[str, int], budget: dict[str, int]) -> int:
    """Print each count beside its budget; 1 if one is over it or is missing on either side."""
    failed = False
    for name in sorted(counts.keys() | budget.keys()):
        have, allowed = counts.get(name), budget.get(name)
        if have is None or allowed is None:
            verdict = "not counted" if have is None else "has no budget: update"
            failed |= allowed is None
            print(f"{name:32} {verdict}")
            continue
        over = have > allowed * (1 + TOLERANCE)
        failed |= over
        print(f"{name:32} {have:12,} of {allowed:12,} {have / allowed - 1:+7.1%}{'  OVER THE BUDGET' if over else ''}")
    return int(failed)


def _lines(driver: Path, command: str) -> list[str]:
    return subprocess.run([driver, command], check=True, capture_output=True, text=True).stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
