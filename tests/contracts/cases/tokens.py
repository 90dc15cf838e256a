from moescope.records import TokenBatch
from moescope.statistics.cooccurrence import ExpertCooccurrence
from moescope.statistics.paths import ExpertPaths
from moescope.statistics.saturation import RouterSaturation, RoutingPair
from moescope.statistics.tokens import TokenUsage
from tests.contracts.statistics_cases import LAYERS, NUM_EXPERTS, NUM_EXPERTS_PER_TOKEN, register, routings_of
from tests.records import VOCAB_SIZE

SIZES = {"layers": LAYERS, "num_experts": NUM_EXPERTS, "num_experts_per_token": NUM_EXPERTS_PER_TOKEN}

for reading in ("input", "predicted", "next"):
    for ranks in ("all", "first"):
        defaults = {**SIZES, "vocab_size": VOCAB_SIZE, "reading": reading, "ranks": ranks, "min_count": 3}
        register(
            f"tokens_{reading}_{ranks}",
            make=lambda defaults=defaults, **changes: TokenUsage(**{**defaults, **changes}),
            other={"min_count": 4, "ranks": "all" if ranks == "first" else "first", "vocab_size": VOCAB_SIZE + 1},
        )

for ranks, max_cells in (("all", 10**4), ("all", 60), ("first", 25), ("all", 1)):  # all fit; some; none
    defaults = {**SIZES, "vocab_size": VOCAB_SIZE, "reading": "next", "ranks": ranks, "max_cells": max_cells}
    register(
        f"tokens_{ranks}_{max_cells}_cells",
        make=lambda defaults=defaults, **changes: TokenUsage(**{**defaults, **changes}),
        other={"min_count": 4, "max_cells": 61, "vocab_size": VOCAB_SIZE + 1},
    )

register(
    "tokens_half",
    make=lambda **changes: TokenUsage(**{**SIZES, "vocab_size": VOCAB_SIZE, "half": 0, "seed": 1, **changes}),
    other={"half": 1, "seed": 2},
)
register(
    "cooccurrence",
    make=lambda **changes: ExpertCooccurrence(**{**SIZES, **changes}),
    other={"num_experts_per_token": 3},
)
register("paths", make=lambda **changes: ExpertPaths(**{**SIZES, **changes}), other={"num_experts_per_token": 3})


def pairs_of(tokens: TokenBatch, seed: int) -> list[RoutingPair]:
    """Two routers over the same tokens: they share what they make of token types and domains, not their noise."""
    checkpoint, final = routings_of(tokens, seed), routings_of(tokens, seed + 100)
    return [RoutingPair(*pair) for pair in zip(checkpoint, final, strict=True)]


register(
    "saturation",
    make=lambda **changes: RouterSaturation(**{**SIZES, **changes}),
    other={"num_experts": 9},
    records=pairs_of,
)
