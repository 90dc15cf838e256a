from __future__ import annotations

from moescope.statistics.margins import SelectionMargins
from moescope.statistics.samples.contexts import TopContexts
from moescope.statistics.samples.tokens import TokenSample
from tests.contracts.statistics_cases import LAYERS, NUM_EXPERTS, NUM_EXPERTS_PER_TOKEN, outputs_of, register

SIZES = {"layers": LAYERS, "num_experts": NUM_EXPERTS}

register(
    "contexts",
    make=lambda **changes: TopContexts(**{**SIZES, "num_contexts": 4, "before": 3, "after": 2, **changes}),
    other={"seed": 1, "num_contexts": 5, "before": 4},
    records=outputs_of,
)
register(
    "contexts_not_filled",
    make=lambda **changes: TopContexts(**{**SIZES, "num_contexts": 60, **changes}),
    other={"after": 9},
    records=outputs_of,
)
register(
    "token_sample",
    make=lambda **changes: TokenSample(
        **{"layers": LAYERS, "num_experts_per_token": NUM_EXPERTS_PER_TOKEN, "num_samples": 40, **changes}
    ),
    other={"seed": 1, "num_samples": 41},
)
register(
    "margins",
    make=lambda **changes: SelectionMargins(**{**SIZES, **changes}),
    other={"selects_by": "score"},
)
