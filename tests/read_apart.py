"""Read every MIDI file of a folder, each in a forked process, and print as JSON what became of it and what it took.

python tests/read_apart.py FOLDER
"""

import json
import os
import resource
import sys
from pathlib import Path

from dsmr.music.midi import MidiError, read_midi
from dsmr.music.tokens import encode

ADDRESS_SPACE = 2 * 2**30
PROCESSOR_SECONDS = 60


def read(path: Path) -> dict[str, int | float | str]:
    """How many notes and tokens a file has, or why it is refused."""
    try:
        performance = read_midi(path)
    except MidiError as error:
        return {"reason": str(error)}
    return {"notes": len(performance.notes), "tokens": len(encode(performance))}


def read_apart(path: Path) -> dict[str, int | float | str]:
    """The same, read in a process of its own; and how that ended, its largest memory in bytes, its processor time."""
    answer, report = os.pipe()
    if (pid := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
        os.write(report, json.dumps(read(path)).encode())
        os._exit(0)
    os.close(report)
    with os.fdopen(answer) as file:
        said = file.read()
    _, status, used = os.wait4(pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        **json.loads(said or "{}"),
        "exit": os.waitstatus_to_exitcode(status),
        "memory": used.ru_maxrss * unit,
        "seconds": used.ru_utime + used.ru_stime,
    }


if __name__ == "__main__":
    print(json.dumps({path.name: read_apart(path) for path in sorted(Path(sys.argv[1]).iterdir())}))
