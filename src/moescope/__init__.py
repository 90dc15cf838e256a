"""moescope looks into Mixture-of-Experts language models: the public names, nothing else."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moescope import statistics as statistics
    from moescope.analyses.intervention.analysis import intervene as intervene
    from moescope.corpora import load_corpus as load_corpus
    from moescope.interventions import Ablate as Ablate
    from moescope.interventions import Replace as Replace
    from moescope.interventions import Scale as Scale
    from moescope.interventions import Set as Set
    from moescope.interventions import intervening as intervening
    from moescope.models import load_model as load_model
    from moescope.run import Run as Run
    from moescope.run import capture as capture

__version__ = importlib.metadata.version("moescope")

_HOMES = {
    "load_model": "moescope.models",
    "load_corpus": "moescope.corpora",
    "capture": "moescope.run",
    "Run": "moescope.run",
    "Ablate": "moescope.interventions",
    "Replace": "moescope.interventions",
    "Scale": "moescope.interventions",
    "Set": "moescope.interventions",
    "intervene": "moescope.analyses.intervention.analysis",
    "intervening": "moescope.interventions",
}
__all__ = [
    "Ablate",
    "Replace",
    "Run",
    "Scale",
    "Set",
    "__version__",
    "capture",
    "intervene",
    "intervening",
    "load_corpus",
    "load_model",
    "statistics",
]


def __dir__() -> list[str]:
    """The public names, also those that are not imported yet."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Brings a public name on first use, so that `import moescope` costs no torch (PEP 562)."""
    if name == "statistics":
        return importlib.import_module("moescope.statistics")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moescope' has no attribute {name!r}")
