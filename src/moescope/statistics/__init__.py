"""Accumulators: declared state, `update`, `merge`, `compute`; one file each."""

from moescope.statistics.base import Statistic
from moescope.statistics.cooccurrence import ExpertCooccurrence
from moescope.statistics.distributions import RoutingDistributions
from moescope.statistics.entropy import RouterEntropy
from moescope.statistics.paths import ExpertPaths
from moescope.statistics.saturation import RouterSaturation
from moescope.statistics.tokens import TokenUsage
from moescope.statistics.usage import ExpertUsage

__all__ = [
    "ExpertCooccurrence",
    "ExpertPaths",
    "ExpertUsage",
    "RouterEntropy",
    "RouterSaturation",
    "RoutingDistributions",
    "Statistic",
    "TokenUsage",
]
