"""Experts turned up, down or off: changes, the context that applies them, their effect, and controls."""

from moescope.interventions.changes import Ablate, Change, Replace, Scale, Set
from moescope.interventions.controls import Usage, count_usage, matched_draws, matched_experts
from moescope.interventions.effects import compare, intervene
from moescope.interventions.intervening import intervening
from moescope.interventions.studies import Study

__all__ = [
    "Ablate",
    "Change",
    "Replace",
    "Scale",
    "Set",
    "Study",
    "Usage",
    "compare",
    "count_usage",
    "intervene",
    "intervening",
    "matched_draws",
    "matched_experts",
]
