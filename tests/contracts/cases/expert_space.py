from __future__ import annotations

from moescope.statistics.contribution import ExpertContribution
from moescope.statistics.samples.outputs import OutputSample
from tests.contracts.statistics_cases import DOMAINS, LAYERS, NUM_EXPERTS, outputs_of, register

WIDTH = 6
SIZES = {"layers": LAYERS, "num_experts": NUM_EXPERTS, "model_width": WIDTH}

register(
    "output_sample",
    make=lambda **changes: OutputSample(**{**SIZES, "num_samples": 12, **changes}),
    other={"seed": 1, "num_samples": 13},
    records=outputs_of,
)
register(
    "output_sample_not_filled",
    make=lambda **changes: OutputSample(**{**SIZES, "num_samples": 700, **changes}),
    other={"dtype": "float64"},
    records=outputs_of,
)
register(
    "contribution",
    make=lambda **changes: ExpertContribution(**{**SIZES, "domains": DOMAINS, "num_groups": 5, **changes}),
    other={"domains": ["beta", "alpha", "gamma"], "seed": 1, "num_groups": 6},
    records=outputs_of,
)
