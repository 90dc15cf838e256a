"""Models that can be looked into: loading, the seam, the probe."""

from moescope.models.facts import ModelFacts
from moescope.models.loading import load_model
from moescope.models.moe import MoEModel
from moescope.models.probe import ProbeReport
from moescope.models.routers import RouterFacts, RouterRule

__all__ = ["MoEModel", "ModelFacts", "ProbeReport", "RouterFacts", "RouterRule", "load_model"]
