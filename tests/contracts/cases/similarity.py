from __future__ import annotations

from moescope.statistics.samples.inputs import LayerInputs
from moescope.statistics.shared_tokens import SharedTokens
from tests.contracts.statistics_cases import LAYERS, NUM_EXPERTS, NUM_EXPERTS_PER_TOKEN, outputs_of, register

register(
    "layer_inputs",
    make=lambda **changes: LayerInputs(**{"layers": LAYERS, "model_width": 5, "num_samples": 40, **changes}),
    other={"seed": 1, "num_samples": 41},
)
register(
    "layer_inputs_not_filled",
    make=lambda **changes: LayerInputs(**{"layers": LAYERS, "model_width": 5, "num_samples": 2000, **changes}),
    other={"dtype": "float64"},
)
register(
    "shared_tokens",
    make=lambda **changes: SharedTokens(
        **{
            "layers": LAYERS,
            "num_experts": NUM_EXPERTS,
            "num_experts_per_token": NUM_EXPERTS_PER_TOKEN,
            "num_groups": 5,
            **changes,
        }
    ),
    other={"num_groups": 6, "seed": 1},
    records=outputs_of,
)
