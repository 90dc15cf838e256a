from __future__ import annotations

from moescope.statistics.distributions import RoutingDistributions
from moescope.statistics.entropy import RouterEntropy
from tests.contracts.statistics_cases import DOMAINS, LAYERS, NUM_EXPERTS, NUM_EXPERTS_PER_TOKEN, register

SIZES = {"layers": LAYERS, "num_experts": NUM_EXPERTS, "num_experts_per_token": NUM_EXPERTS_PER_TOKEN}

register(
    "entropy",
    make=lambda **changes: RouterEntropy(**{**SIZES, "domains": DOMAINS, **changes}),
    other={"domains": ["beta", "alpha", "gamma"], "selects_by": "score"},
)
register("distributions", make=lambda **changes: RoutingDistributions(**{**SIZES, **changes}), other={"num_experts": 9})
