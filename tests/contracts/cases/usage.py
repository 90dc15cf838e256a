from __future__ import annotations

from typing import Any

from moescope.statistics.usage import ExpertUsage
from tests.contracts.statistics_cases import DOMAINS, LAYERS, NUM_EXPERTS, NUM_EXPERTS_PER_TOKEN, register


def make(**changes: Any) -> ExpertUsage:
    parameters: dict[str, Any] = {
        "layers": LAYERS,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_token": NUM_EXPERTS_PER_TOKEN,
        "domains": DOMAINS,
        "num_null": 20,
        "num_documents": 9,
    }
    return ExpertUsage(**{**parameters, **changes})


register("usage", make, other={"seed": 1, "domains": ["beta", "alpha", "gamma"], "num_null": 10, "num_documents": 5})
