"""Whether memory depends on how much text is read: peak resident memory at many tokens over that at few.

    uv run python -m benchmarks.memory

Each side is a process of its own (peak memory never goes down again within one); all analyses, embedded model and
corpus. glibc is told to give freed blocks of 4 MiB and more back at once, on both sides: else it keeps up to 200 MiB of
them for later, now more, now less, which is as much as all batches take.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from benchmarks.timing import report

CHILD = """
import sys, moescope
from moescope.run import peak_memory_bytes
moescope.capture(moescope.load_model("nano"), moescope.load_corpus("embedded"), num_tokens=int(sys.argv[1]))
print(peak_memory_bytes())
"""


def peak(num_tokens: int) -> float:
    """Peak resident bytes of a fresh process that captures `num_tokens`."""
    child = [sys.executable, "-c", CHILD, str(num_tokens)]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**20)}
    ended = subprocess.run(child, check=True, capture_output=True, text=True, env=environment)
    return float(ended.stdout.split()[-1])


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--many", type=int, default=400_000)
    parser.add_argument("--few", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    many, few = [], []
    for _ in range(arguments.repeats):
        many.append(peak(arguments.many))
        few.append(peak(arguments.few))
    report("memory/nano-400k-over-50k", many, few, many_mib=round(max(many) / 2**20), few_mib=round(max(few) / 2**20))


if __name__ == "__main__":
    main()
