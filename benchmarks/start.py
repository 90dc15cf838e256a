"""Processor time of help pages, over that of an interpreter that imports cyclopts and rich alone.

    uv run python -m benchmarks.start

Compiled files are kept in a folder of the benchmark's own, as an installed package has them; the first run of each
side, which compiles, is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from tempfile import TemporaryDirectory

from benchmarks.timing import report

FLOOR = "import cyclopts, rich.console, rich.panel, rich.table, os, sys"
COMMANDS = (["--help"], ["usage", "--help"], ["atlas", "--help"], ["intervene", "--help"])


def processor_seconds(code: str, folder: str) -> float:
    """User and system time of one interpreter that runs the code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = folder
    code += "\nimport os, sys\nprint(sum(os.times()[:2]), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return float(done.stderr.split()[-1])


def main() -> None:
    """Measures and prints one JSON line a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    with TemporaryDirectory() as folder:
        for words in COMMANDS:
            code = f"import sys; sys.argv = ['moescope', *{words}]\nfrom moescope.cli import main; main()"
            sides: tuple[list[float], list[float]] = ([], [])
            for _ in range(repeats + 1):
                for side, source in zip(sides, (code, FLOOR), strict=True):
                    side.append(processor_seconds(source, folder))
            ours, floor = (side[1:] for side in sides)
            seconds = round(statistics.median(ours), 3)
            report(f"start/{' '.join(words)}", ours, floor, processor_seconds=seconds)


if __name__ == "__main__":
    main()
