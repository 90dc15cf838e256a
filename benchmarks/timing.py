"""How all benchmarks measure: the two sides in turn, in one process, medians; and how they report."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any


def alternate(*sides: Callable[[], object], repeats: int) -> list[list[float]]:
    """Seconds of each side, run in turn (A B C A B C ...) after one uncounted run of each, so that drift hits all."""
    for run in sides:
        run()
    seconds: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for side, run in zip(seconds, sides, strict=True):
            started = time.perf_counter()
            run()
            side.append(time.perf_counter() - started)
    return seconds


def report(name: str, numerator: list[float], denominator: list[float], **facts: Any) -> float:
    """Prints one JSON line: the ratio of the medians, and the range of the paired ratios."""
    ratio = statistics.median(numerator) / statistics.median(denominator)
    pairs = [above / below for above, below in zip(numerator, denominator, strict=True)]
    line = {
        "name": name,
        "ratio": round(ratio, 4),
        "pairs_low": round(min(pairs), 4),
        "pairs_high": round(max(pairs), 4),
    }
    print(json.dumps(line | {"repeats": len(pairs)} | facts), flush=True)
    return ratio
