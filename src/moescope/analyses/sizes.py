"""What a run's accumulators take in memory, known before any text is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from moescope.errors import EnvironmentFailure, MoescopeWarning, UsageError
from moescope.results.text import size

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis
    from moescope.context import Context

MOST_NAMED = 3
_CGROUP = Path("/sys/fs/cgroup")


def state_bytes(analyses: Iterable[Analysis], context: Context) -> dict[str, dict[str, int]]:
    """Bytes of each accumulator of each question, by the keys under which questions share them.

    What a question takes of others that it needs is among its own. Nothing is allocated. On a CPU they are the bytes
    that the tokens of the run can fill.
    """
    num_tokens = context.num_tokens if context.model.device == "cpu" else None
    sized = replace(context, model=replace(context.model, device="meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MoescopeWarning)
        return {analysis.name: _bytes_of(analysis, sized, num_tokens) for analysis in analyses}


def total_bytes(sizes: Mapping[str, Mapping[str, int]]) -> int:
    """Bytes of all questions together: what they share is there once."""
    shared: dict[str, int] = {}
    for keys in sizes.values():
        shared |= keys
    return sum(shared.values())


def check_memory(analyses: Iterable[Analysis], context: Context) -> None:
    """Refuses a run whose accumulators do not fit into the memory that is free.

    Raises:
        EnvironmentFailure: Says what takes most, and what to do.
    """
    sizes = state_bytes(analyses, context)
    needed, available = total_bytes(sizes), available_bytes(context.model.device)
    if needed <= available:
        return
    by_question = {name: sum(keys.values()) for name, keys in sizes.items()}
    largest = sorted(by_question, key=lambda name: -by_question[name])[:MOST_NAMED]
    named = ", ".join(f"{name} {size(by_question[name])}" for name in largest)
    raise EnvironmentFailure(
        f"the counts and samples of this run take {size(needed)} of memory ({named}) for {len(context.layers)} layers, "
        f"{context.model.num_experts} experts and {len(context.domains)} domains, and {size(available)} are free on "
        f"{context.model.device}",
        remedy="look at fewer `layers`, take fewer domains (`num_domains`), or leave out questions; `moescope info` "
        "lists what each takes",
    )


def available_bytes(device: str) -> int:
    """Memory that is free where accumulators are kept, within the limits of the control groups of this process."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = [psutil.virtual_memory().available]
    # Version 2 of control groups as a container sees its own.
    with suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        statistics = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        used = int((_CGROUP / "memory.current").read_text()) - int(statistics.get("inactive_file", 0))
        free.append(max(0, limit - used))
    return int(min(free))


def _bytes_of(analysis: Analysis, context: Context, num_tokens: int | None) -> dict[str, int]:
    sizes: dict[str, int] = {}
    with suppress(UsageError):
        for other in analysis.needs(context).values():
            sizes |= _bytes_of(other, context, num_tokens)
        for key, statistic in analysis.statistics(context).items():
            sizes[key] = statistic.nbytes() if num_tokens is None else statistic.resident_bytes(num_tokens)
    return sizes
