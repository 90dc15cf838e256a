"""The distributions analysis on a real run, against numpy over the same records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import moescope
from moescope.run import Run
from tests.analyses.runs import routings_of, small_corpus, tiny_model
from tests.figures.drawing import drawn

LAYERS = [0, 2]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model: Any, corpus: Any) -> Run:
    return moescope.capture(model, corpus, ["distributions"], num_tokens=3000, layers=LAYERS)


@pytest.fixture(scope="module")
def frames(run: Run) -> Mapping[str, pd.DataFrame]:
    return run.frames


@pytest.fixture(scope="module")
def raw(model: Any, corpus: Any) -> dict[int, dict[str, np.ndarray]]:
    """All values of each quantity in each layer, float64, ranked where there are ranks."""
    found = {}
    records = routings_of(model, corpus, LAYERS)
    for layer in LAYERS:
        mine = [record for record in records if record.layer == layer]
        logits = torch.cat([record.logits_TE for record in mine]).double().numpy()
        weights = torch.cat([record.weights_TK for record in mine]).double().numpy()
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        largest = -np.sort(-p, axis=1)[:, :2]
        renormalized = largest / largest.sum(axis=1, keepdims=True)
        found[layer] = {"logit": logits, "probability": p, "renormalized": renormalized, "weight": weights}
    return found


def test_moments_and_quantiles(frames: Mapping[str, pd.DataFrame], raw: dict) -> None:
    frame = frames["routing_distributions"]
    assert len(frame) == len(LAYERS) * 4
    for row in frame.itertuples():
        values = raw[row.layer][row.quantity]
        assert row.num_values == values.size
        assert row.num_tokens == len(values)
        assert row.mean == pytest.approx(values.mean(), abs=1e-6)
        assert row.std == pytest.approx(values.std(), abs=1e-6)
        exact = np.quantile(values, [0.05, 0.5, 0.95], method="inverted_cdf")
        tolerance = 1 / 16 if row.quantity == "logit" else exact / 64
        assert np.all(np.abs(np.array([row.q05, row.q50, row.q95]) - exact) <= tolerance + 1e-6)


def test_histograms_hold_all_values_where_they_are(frames: Mapping[str, pd.DataFrame], raw: dict) -> None:
    frame = frames["routing_histograms"]
    kinds = frame[["quantity", "scale"]].drop_duplicates().itertuples(index=False, name=None)
    logs = [(name, "log") for name in ("probability", "renormalized", "weight")]
    linears = [(name, "linear") for name in ("logit", "probability", "renormalized")]
    assert set(kinds) == {*logs, *linears}
    for (layer, quantity, scale), rows in frame.groupby(["layer", "quantity", "scale"]):
        values = raw[layer][quantity]
        assert rows.num_values.sum() == values.size
        assert (rows.num_values > 0).all()
        widths = rows.high - rows.low
        assert (widths == 0.25).all() if quantity == "logit" else (widths > 0).all()
        if scale == "linear" and quantity != "logit":
            assert (widths == 1 / 128).all()
        for row in rows.iloc[:: max(1, len(rows) // 8)].itertuples():
            inside = ((values >= row.low) & (values < row.high)).sum()
            assert abs(inside - row.num_values) <= 2 + 1e-3 * values.size  # float32 beside float64 at the edges


def test_means_by_rank(frames: Mapping[str, pd.DataFrame], raw: dict) -> None:
    frame = frames["weights_by_rank"]
    assert frame["rank"].tolist() == [0, 1, 0, 1]
    for row in frame.itertuples():
        values = raw[row.layer]
        # softmax without bias: rank by weight is rank by probability and by logit
        assert row.logit_mean == pytest.approx(-np.sort(-values["logit"], axis=1)[:, row.rank].mean(), abs=1e-5)
        p = -np.sort(-values["probability"], axis=1)[:, row.rank].mean()
        assert row.probability_mean == pytest.approx(p, abs=1e-6)
        assert row.weight_mean == pytest.approx(p, abs=1e-6)  # OLMoE applies the probability itself
        assert row.renormalized_mean == pytest.approx(values["renormalized"][:, row.rank].mean(), abs=1e-6)


def test_full_histograms_are_kept_as_arrays(run: Run, raw: dict) -> None:
    arrays = run.arrays["routing_histograms"]
    assert arrays["layers"].tolist() == LAYERS
    for name, values in raw[0].items():
        assert arrays[f"{name}_counts"].shape == (len(LAYERS), len(arrays[f"{name}_edges"]) + 1)
        assert arrays[f"{name}_counts"][0].sum() == values.size


def test_figures(run: Run, model: Any, corpus: Any) -> None:
    names = ["logit", "probability", "renormalized", "weight"]
    figures = run.figures
    assert list(figures) == [
        "routing_distributions",
        *(f"routing_{name}_by_layer" for name in names),
        "routing_by_rank",
    ]
    for figure in figures.values():
        assert any(f"{run.context.num_tokens:,} tokens" in text for text in drawn(figure))
    alone = moescope.capture(model, corpus, ["distributions"], num_tokens=600, layers=[3]).figures
    assert list(alone) == ["routing_distributions", "routing_by_rank"]
    for figure in alone.values():
        assert any("layer 3" in text for text in drawn(figure))
