from __future__ import annotations

from moescope.statistics.samples.texts import TextSample
from tests.contracts.statistics_cases import DOMAINS, LAYERS, register

SIZES = {"layers": LAYERS, "domains": DOMAINS}

register(
    "text_sample",
    make=lambda **changes: TextSample(**{**SIZES, "num_documents": 5, "length": 12, **changes}),
    other={"seed": 1, "num_documents": 6, "length": 13},
)
register(
    "text_sample_not_filled",
    make=lambda **changes: TextSample(**{**SIZES, "num_documents": 90, "length": 60, **changes}),
    other={"domains": ["beta", "alpha", "gamma"]},
)
