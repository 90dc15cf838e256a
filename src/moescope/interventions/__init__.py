"""Experts scaled, set, ablated or replaced: changes, the context that applies them, and matched controls."""

from moescope.interventions.changes import Ablate, Change, Replace, Scale, Set
from moescope.interventions.controls import Usage, count_usage, matched_draws, matched_experts
from moescope.interventions.intervening import intervening

__all__ = [
    "Ablate",
    "Change",
    "Replace",
    "Scale",
    "Set",
    "Usage",
    "count_usage",
    "intervening",
    "matched_draws",
    "matched_experts",
]
