"""The registry of statistics under contract: what `test_statistics.py` runs its checks on.

A new statistic gets a file in `tests/contracts/cases/` that says how to make it and what to feed it:

    from moescope.statistics.usage import ExpertUsage
    from tests.contracts.statistics_cases import register

    register(
        "usage",
        make=lambda **changes: ExpertUsage(**{"layers": LAYERS, "num_experts": 8, ..., **changes}),
        other={"seed": 1},
    )
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from moescope.records import ExpertOutputs, Routing, TokenBatch
from moescope.statistics.base import Statistic
from tests.contracts import cases
from tests.records import random_outputs, random_routings

LAYERS = [1, 4, 5]
NUM_EXPERTS = 8
NUM_EXPERTS_PER_TOKEN = 2
DOMAINS = ["alpha", "beta", "gamma"]

Records = list[Routing] | list[ExpertOutputs]


def routings_of(tokens: TokenBatch, seed: int) -> list[Routing]:
    """What a statistic of routing is fed: three layers, eight experts, top-2, softmax."""
    return random_routings(
        tokens,
        seed,
        layers=LAYERS,
        num_experts=NUM_EXPERTS,
        num_experts_per_token=NUM_EXPERTS_PER_TOKEN,
        inputs_width=5,
    )


def outputs_of(tokens: TokenBatch, seed: int) -> list[ExpertOutputs]:
    """What a statistic of expert outputs is fed."""
    return [random_outputs(routing, seed + position) for position, routing in enumerate(routings_of(tokens, seed))]


@dataclass(frozen=True)
class Case:
    """A statistic under contract.

    Attributes:
        make: Makes it, empty; keyword arguments change its parameters.
        other: Changes of parameters that make another statistic, which must refuse to merge.
        records: Its records of one batch (all layers), given batch and seed.
        splits: Whether a batch may be split between documents (False for what is defined on whole batches).
        tolerance: Relative tolerance of sums of reals.
    """

    make: Callable[..., Statistic]
    other: dict[str, Any] = field(default_factory=dict)
    records: Callable[[TokenBatch, int], Records] = routings_of
    splits: bool = True
    tolerance: float = 1e-9


CASES: dict[str, Case] = {}


def register(name: str, make: Callable[..., Statistic], **options: Any) -> None:
    """Puts a statistic under contract; options are those of `Case`."""
    if name in CASES:
        raise ValueError(f"two cases are called {name!r}")
    CASES[name] = Case(make=make, **options)


def all_cases() -> Sequence[str]:
    """Names of all cases, after importing every file of `tests/contracts/cases/`."""
    for module in pkgutil.iter_modules(cases.__path__):
        importlib.import_module(f"{cases.__name__}.{module.name}")
    return sorted(CASES)
