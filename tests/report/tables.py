"""Tables made by hand, as the analyses write them: two layers (1, 7), two domains, four experts, top-2."""

from __future__ import annotations

import math

import pandas as pd

NAN = math.nan


def specialists(**changes: list) -> pd.DataFrame:
    columns = {
        "rank": [0, 1, 2],
        "layer": [7, 1, 1],
        "domain": ["verse", "verse", "law"],
        "expert": [3, 0, 2],
        "num_tokens": [260, 260, 240],
        "num_documents": [11, 11, 10],
        "domain_specialization": [0.912, 0.8, 0.65],
        "ci_low": [0.871, 0.7, 0.55],
        "ci_high": [0.9441, 0.9, 0.75],
        "lift": [2.5, 1.5, 1.4],
        "lift_ci_low": [2.25, 1.2, 1.1],
        "lift_ci_high": [2.75, 1.8, 1.7],
        "lift_p_value": [0.0002, 0.001, 0.002],
        "uniform_baseline": [0.5] * 3,
        "selection_half_domain_specialization": [0.9] * 3,
        "selection_half_lift": [3.0, 2.0, 1.5],
    }
    return pd.DataFrame(columns | changes)


def information(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1, 7],
        "num_tokens": [1000, 1000],
        "domain_entropy": [1.0, 1.0],
        "mutual_information": [0.02, 0.35],
        "mutual_information_null_mean": [0.03, 0.05],
        "mutual_information_null_low": [0.01, 0.02],
        "mutual_information_null_high": [0.06, 0.0871],
        "mutual_information_share_excess": [-0.01, 0.3],
        "set_information": [0.04, 0.61],
        "set_information_ci_low": [-0.02, 0.52],
        "set_information_ci_high": [0.1, 0.7],
        "set_information_null_mean": [-0.11, -0.12],
        "set_information_null_low": [-0.16, -0.17],
        "set_information_null_high": [-0.05, -0.0654],
        "set_information_share": [0.04, 0.61],
        "set_information_p_value": [0.03, 0.0003],
        "set_information_tied": [False, True],
    }
    return pd.DataFrame(columns | changes)


def usage(selected: dict[int, list[int]], num_tokens: int = 1000) -> pd.DataFrame:
    """The pooled rows, and one domain's that must not be mistaken for them; `selected` counts by layer and expert."""
    rows = []
    for layer, counts in selected.items():
        for domain in ("all", "law"):
            for expert, count in enumerate(counts):
                rows.append(
                    {
                        "layer": layer,
                        "domain": domain,
                        "expert": expert,
                        "num_tokens": num_tokens,
                        "num_selected": count if domain == "all" else 0,
                        "selection_frequency": count / num_tokens if domain == "all" else 0.0,
                        "ci_low": count / num_tokens - 0.05,
                        "ci_high": count / num_tokens + 0.05,
                    }
                )
    return pd.DataFrame(rows)


def load(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1, 1, 7, 7],
        "domain": ["all", "law"] * 2,
        "max_violation": [0.2, 9.0, 0.6, 9.0],
        "num_unused_experts": [0, 9, 1, 9],
    }
    return pd.DataFrame(columns | changes)


def entropy(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1, 1, 1, 7, 7, 7],
        "domain": ["all", "law", "verse"] * 2,
        "num_tokens": [1000, 500, 500] * 2,
        "entropy_mean": [1.2, 1.1, 1.3, 0.9, 0.8, 1.0],
        "normalized_entropy_mean": [0.866, 0.8, 0.92, 0.65, 0.6, 0.7],
        "top1_probability_mean": [0.4, 0.45, 0.35, 0.6, 0.65, 0.55],
        "layer_tied": [True] * 3 + [False] * 3,
        "domain_tied": [False, False, True] * 2,
    }
    return pd.DataFrame(columns | changes)


def vocabulary() -> pd.DataFrame:
    columns = {
        "layer": [1, 1, 1, 7, 7, 7],
        "reading": ["input", "input", "next"] * 2,
        "ranks": ["top-K", "top-1", "top-K"] * 2,
        "num_types": [120, 120, 110] * 2,
        "min_count": [10] * 6,
        "vocabulary_specialization": [0.9, 0.99, 0.7, 0.8, 0.99, 0.75],
        "vocabulary_specialization_chance": [0.65, 0.4, 0.65, 0.65, 0.4, 0.65],
        "evaluation_half_vocabulary_specialization": [0.78, 0.97, 0.6, 0.83, 0.96, 0.99],
        "evaluation_half_vocabulary_specialization_chance": [0.5, 0.25, 0.5, 0.51, 0.25, 0.5],
        "evaluation_half_num_types": [90, 90, 80, 91, 90, 80],
    }
    return pd.DataFrame(columns)


def vocabulary_dependence(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1, 1, 7, 7],
        "reading": ["input", "next"] * 2,
        "dependence": [0.31, 0.05, 0.12, 0.04],
        "dependence_ci_low": [0.27, 0.03, 0.09, 0.02],
        "dependence_ci_high": [0.35, 0.07, 0.15, 0.06],
        "dependence_p_value": [0.0004, 0.01, 0.002, 0.02],
        "dependence_tied": [True, True, False, True],
        "difference": [0.17] * 4,
        "difference_ci_low": [0.14] * 4,
        "difference_ci_high": [0.2] * 4,
    }
    return pd.DataFrame(columns | changes)


def coactivation_pairs() -> pd.DataFrame:
    columns = {
        "layer": [1, 7],
        "rank": [0, 0],
        "expert": [0, 1],
        "other_expert": [2, 3],
        "num_tokens": [1000, 1000],
        "num_together": [300, 450],
        "num_together_chance": [200.0, 150.0],
        "coactivation": [0.5, 0.75],
        "lift": [1.4, 2.8],
    }
    return pd.DataFrame(columns)


def coactivation(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1, 7],
        "num_pairs": [6, 5],
        "lift_q95": [1.3, 2.5],
        "top_expert": [0, 1],
        "top_other_expert": [2, 3],
        "top_excess_selection_half": [4.2, 9.7],
        "top_lift": [3.9, 2.8],
        "top_lift_chance": [0.66, 0.71],
        "top_lift_ci_low": [3.1, 2.3],
        "top_lift_ci_high": [4.7, 3.3],
        "top_p_value": [0.4, 0.0005],
    }
    return pd.DataFrame(columns | changes)


def paths(**changes: list) -> pd.DataFrame:
    columns = {
        "layer": [1],
        "next_layer": [7],
        "top1_nmi": [0.31],
        "top1_nmi_chance": [0.002],
        "dependence": [0.23],
        "dependence_ci_low": [0.19],
        "dependence_ci_high": [0.27],
        "dependence_p_value": [0.0006],
        "dependence_tied": [True],
    }
    return pd.DataFrame(columns | changes)


def everything() -> dict[str, pd.DataFrame]:
    return {
        "specialists": specialists(),
        "usage_information": information(),
        "usage": usage({1: [500, 500, 500, 500], 7: [0, 800, 20, 1180]}),
        "usage_load": load(),
        "router_entropy": entropy(),
        "vocabulary": vocabulary(),
        "vocabulary_dependence": vocabulary_dependence(),
        "coactivation_pairs": coactivation_pairs(),
        "coactivation": coactivation(),
        "paths": paths(),
    }
