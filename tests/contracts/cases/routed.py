from moescope.statistics.samples.routed import RoutedTokens
from tests.contracts.statistics_cases import LAYERS, NUM_EXPERTS, NUM_EXPERTS_PER_TOKEN, register

for name, num_samples in (("routed_tokens", 400), ("routed_tokens_whole", 5000)):
    defaults = {
        "layers": LAYERS,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_token": NUM_EXPERTS_PER_TOKEN,
        "num_samples": num_samples,
        "seed": 3,
    }
    register(
        name,
        make=lambda defaults=defaults, **changes: RoutedTokens(**{**defaults, **changes}),
        other={"seed": 1, "num_samples": 100},
    )
