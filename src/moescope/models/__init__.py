"""Models that can be looked into: loading, the seam, the probe."""

from moescope.models.facts import ModelFacts
from moescope.models.loading import CheckpointReport, inspect_checkpoint, load_model
from moescope.models.moe import MoEModel
from moescope.models.probe import ProbeReport
from moescope.models.routers import RouterFacts, RouterRule

__all__ = [
    "CheckpointReport",
    "MoEModel",
    "ModelFacts",
    "ProbeReport",
    "RouterFacts",
    "RouterRule",
    "inspect_checkpoint",
    "load_model",
]
