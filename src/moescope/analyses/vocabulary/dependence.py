"""How far routing depends on the identity of a token, on held-out documents."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from moescope.measures.association import held_out_scores
from moescope.measures.clustered import clustered_mean, summarized
from moescope.statistics.samples.routed import RoutedDocuments
from moescope.statistics.variables import variable

READINGS = ("input", "next")
"""Readings that are tested: those of text. What the model predicts itself depends on its routing."""

DIFFERENCE = ("difference", "difference_ci_low", "difference_ci_high")

_OF = "dependence of the selected experts on the token type, on held-out documents"
DEFINITIONS = {
    "dependence": (
        "nats",
        "sum_xe (P(x, e) - P(x) P(e)) W_xe on the evaluation half of the documents, over types x and selected experts "
        "e, W_xe the logarithm of the lift of e for x on the selection half; 0 if selection is independent of the type",
    ),
    "dependence_ci_low": ("nats", f"2.5 % end of the 95 % interval over documents (linearized, t), of {_OF}"),
    "dependence_ci_high": ("nats", f"97.5 % end of the 95 % interval over documents (linearized, t), of {_OF}"),
    "dependence_p_value": ("probability", f"one-sided, of no {_OF}"),
    "dependence_tied": (
        "yes or no",
        "not shown to lie below the layer of this reading's highest value (paired, Bonferroni)",
    ),
}


def dependence(sample: RoutedDocuments) -> xr.Dataset:
    """The variables of `DEFINITIONS` by `layer` and `reading`.

    Attrs hold how much larger the dependence on the input token is than that on the next token, mean over layers:
    `difference`, `difference_ci_low`, `difference_ci_high`; NaN where a half has too few documents.
    """
    shape = (len(sample.layers), len(READINGS))
    values: dict[str, NDArray] = {name: np.full(shape, np.nan) for name in DEFINITIONS}
    values["dependence_tied"] = np.zeros(shape, dtype=bool)
    attrs = dict.fromkeys(DIFFERENCE, np.nan)
    # The last token of a window has no next one; both readings are compared on the same tokens.
    known_N = sample.next_token_ids_N >= 0
    judged_N = sample.halves_N[known_N] == 1
    if judged_N.any() and not judged_N.all():
        documents_N = sample.documents_N[known_N][judged_N]
        scores_RLN = np.stack([_scores(sample, reading, known_N) for reading in READINGS])
        for column, scores_LN in enumerate(scores_RLN):
            for name, values_L in summarized(scores_LN, documents_N, "dependence", num_margins=2).items():
                values[name][:, column] = values_L
        difference = clustered_mean((scores_RLN[0] - scores_RLN[1]).mean(axis=0), documents_N, num_margins=2)
        low, high = difference.interval
        attrs = dict(zip(DIFFERENCE, (difference.mean, low, high), strict=True))
    return xr.Dataset(
        {name: variable(("layer", "reading"), values[name], *about) for name, about in DEFINITIONS.items()},
        coords={"layer": list(sample.layers), "reading": list(READINGS)},
        attrs=attrs,
    )


def _scores(sample: RoutedDocuments, reading: str, known_N: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scores of the evaluation half's tokens at each layer."""
    ids_N = (sample.token_ids_N if reading == "input" else sample.next_token_ids_N)[known_N]
    types, types_N = np.unique(ids_N, return_inverse=True)
    halves_N = sample.halves_N[known_N]
    return np.stack(
        [
            held_out_scores(types_N, sample.expert_ids_NK(layer)[known_N], halves_N, len(types), sample.num_experts)
            for layer in sample.layers
        ]
    )


def dependence_frame(table: xr.Dataset) -> pd.DataFrame:
    """A row per layer and reading that is tested; the columns of `DIFFERENCE` are the same in all."""
    frame = table[list(DEFINITIONS)].to_dataframe(dim_order=["layer", "reading"]).reset_index()
    frame = frame[frame["reading"].isin(READINGS)].reset_index(drop=True)
    return frame.assign(**{name: table.attrs[name] for name in DIFFERENCE})
