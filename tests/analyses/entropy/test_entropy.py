"""The entropy analysis on real runs, against plain loops over the model's own `output_router_logits`."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from transformers import AutoModelForCausalLM

import moescope
from moescope.models import load_model
from moescope.records import Routing
from moescope.run import Run
from moescope.statistics.entropy import RouterEntropy
from tests.analyses.runs import routings_of, small_corpus, tiny_model
from tests.families import build, padded_batch, save
from tests.figures.drawing import drawn
from tests.records import batch_of_documents

LAYERS = [0, 1, 3]
ISSUE_COLUMNS = [
    "layer",
    "domain",
    "num_tokens",
    "num_documents",
    "entropy_mean",
    "entropy_std",
    "normalized_entropy_mean",
    "top1_probability_mean",
    "topk_mass_mean",
    "margin_mean",
    "boundary_margin_mean",
    "boundary_tie_share",
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model: Any, corpus: Any) -> Run:
    return moescope.capture(model, corpus, ["entropy"], num_tokens=3000, layers=LAYERS)


@pytest.fixture(scope="module")
def frame(run: Run) -> pd.DataFrame:
    return run.frames["router_entropy"]


def test_columns_and_rows_of_the_file(frame: pd.DataFrame, corpus: Any) -> None:
    assert list(frame.columns[: len(ISSUE_COLUMNS)]) == ISSUE_COLUMNS
    measures = ("entropy", "selected_entropy", "top1_probability", "topk_mass", "margin", "boundary_margin")
    assert {f"{name}_q{level}" for name in measures for level in ("05", "25", "50", "75", "95")} <= set(frame.columns)
    assert {"selected_entropy_mean", "normalized_selected_entropy_mean", "margin_std"} <= set(frame.columns)
    cells = [(layer, domain) for layer in LAYERS for domain in ("all", *corpus.domains)]
    assert list(zip(frame.layer, frame.domain, strict=True)) == cells
    assert frame.notna().all().all()


def test_rows_are_those_of_a_plain_loop_over_the_records(
    run: Run, frame: pd.DataFrame, model: Any, corpus: Any
) -> None:
    records: list[Routing] = routings_of(model, corpus, LAYERS)
    for layer in LAYERS:
        mine = [record for record in records if record.layer == layer]
        logits = torch.cat([record.logits_TE for record in mine]).double().numpy()
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        entropies, descending = scipy.stats.entropy(p, axis=1), -np.sort(-p, axis=1)
        domains = np.concatenate([record.tokens.domain_ids_T.numpy() for record in mine])
        for number, domain in enumerate(("all", *corpus.domains)):
            rows = np.ones(len(p), bool) if domain == "all" else domains == number - 1
            row = frame[(frame.layer == layer) & (frame.domain == domain)].iloc[0]
            assert row.num_tokens == rows.sum()
            assert row.entropy_mean == pytest.approx(entropies[rows].mean(), abs=1e-6)
            assert row.normalized_entropy_mean == pytest.approx(entropies[rows].mean() / np.log(8), abs=1e-6)
            assert row.entropy_std == pytest.approx(entropies[rows].std(), abs=1e-6)
            assert row.top1_probability_mean == pytest.approx(descending[rows, 0].mean(), abs=1e-6)
            assert row.topk_mass_mean == pytest.approx(descending[rows, :2].sum(axis=1).mean(), abs=1e-6)
            assert row.margin_mean == pytest.approx((descending[rows, 0] - descending[rows, 1]).mean(), abs=1e-6)
            boundaries = descending[rows, 1] - descending[rows, 2]
            assert row.boundary_margin_mean == pytest.approx(boundaries.mean(), abs=1e-6)
            exact = np.quantile(entropies[rows], [0.05, 0.5, 0.95], method="inverted_cdf")
            found = [row.entropy_q05, row.entropy_q50, row.entropy_q95]
            np.testing.assert_allclose(found, exact, atol=np.log(8) / 512 + 1e-6)


FAMILIES = ["olmoe", "mixtral", "qwen3_moe"]


@pytest.fixture(scope="module", params=[(family, padded) for family in FAMILIES for padded in (False, True)], ids=str)
def looped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """A model, 64 documents as one padded batch, and the entropies of a loop, each document by itself, by layer."""
    family, padded = request.param
    folder = save(build(family, seed=7), tmp_path_factory.mktemp("family"))
    lengths = [1 + (5 * index) % 12 if padded else 12 for index in range(64)]
    ids_BS, tokens, _ = padded_batch(lengths)
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = load_model(str(folder), device="cpu")
    entropies: dict[int, list[list[float]]] = {layer: [] for layer in model.layers}
    for row, length in enumerate(lengths):
        with torch.no_grad():
            out = reference(input_ids=ids_BS[row : row + 1, :length], output_router_logits=True)
        for layer, logits_SE in zip(model.layers, out.router_logits, strict=True):
            p_SE = np.exp(logits_SE.double().numpy())
            entropies[layer].append([float(scipy.stats.entropy(p_E)) for p_E in p_SE])
    return model, lengths, ids_BS, tokens, entropies


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_entropies_equal_those_of_the_models_own_router_logits(looped: tuple[Any, ...], batch_size: int) -> None:
    model, lengths, ids_BS, tokens, entropies = looped
    statistic = RouterEntropy(
        layers=list(model.layers),
        num_experts=model.num_experts,
        num_experts_per_token=model.num_experts_per_token,
        domains=["even", "odd"],
    )
    for start in range(0, len(lengths), batch_size):
        rows = range(start, min(start + batch_size, len(lengths)))
        part, _ = batch_of_documents(tokens, rows)
        longest = max(lengths[row] for row in rows)
        kept_BS = torch.arange(longest) < torch.tensor([lengths[row] for row in rows])[:, None]
        keep_T = kept_BS.flatten().nonzero().squeeze(1)
        padded_BS = ids_BS[rows.start : rows.stop, :longest]
        model.listen(padded_BS, part, keep_T, layers=model.layers, on_routing=statistic.update)
    table = statistic.compute()
    for layer, by_document in entropies.items():
        for domain, documents in {"even": by_document[::2], "odd": by_document[1::2], "all": by_document}.items():
            values = np.concatenate(documents)
            cell = table.sel(layer=layer, domain=domain)
            assert int(cell["num_tokens"]) == len(values)
            assert int(cell["num_documents"]) == len(documents)
            assert float(cell["entropy_mean"]) == pytest.approx(values.mean(), abs=1e-5)
            assert float(cell["entropy_std"]) == pytest.approx(values.std(), abs=1e-5)


def test_histograms_are_kept_as_arrays(run: Run) -> None:
    arrays = run.arrays["router_entropy_histograms"]
    assert arrays["layers"].tolist() == LAYERS
    for name in ("entropy", "margin", "boundary_margin"):
        assert arrays[f"{name}_counts"].shape[2] == len(arrays[f"{name}_edges"]) + 1
        assert arrays[f"{name}_counts"][:, 0].sum(axis=-1).tolist() == [run.manifest.num_tokens] * len(LAYERS)


def test_figures_of_many_layers(run: Run) -> None:
    figures = run.figures
    assert list(figures) == [
        "router_decisiveness",
        "router_entropy_domains",
        "router_entropy_histograms",
        "router_margins",
    ]
    for figure in figures.values():
        texts = drawn(figure)
        assert any(f"{run.context.num_tokens:,} tokens" in text for text in texts)
        for ax in figure.axes:
            assert ax.get_xlabel() or ax.get_ylabel() or ax.get_title(loc="left")
    assert {"fruit", "trade", "code"} <= set(drawn(figures["router_entropy_domains"]))


def test_figures_of_one_layer_show_histograms(model: Any, corpus: Any) -> None:
    figures = moescope.capture(model, corpus, ["entropy"], num_tokens=600, layers=[1]).figures
    assert list(figures) == ["router_decisiveness", "router_entropy_domains", "router_margins"]
    for figure in figures.values():
        assert any("layer 1" in text for text in drawn(figure))


def test_one_domain_is_enough(model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "only"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.txt").write_text("plain words " * 20, "utf-8")
    run = moescope.capture(model, moescope.load_corpus(str(folder)), ["entropy"], num_tokens=500, layers=[0, 1])
    assert "router_entropy_domains" not in run.figures
    assert len(run.frames["router_entropy"]) == 4


@pytest.mark.parametrize("layers", [None, [1]])
def test_a_model_that_uses_all_its_experts_has_no_boundary_and_is_drawn(layers, tmp_path):
    model = tiny_model(tmp_path / "model", num_experts_per_tok=8)
    corpus = small_corpus(tmp_path / "text")
    run = moescope.capture(model, corpus, ["entropy", "usage", "distributions"], 600, layers)
    assert np.isnan(run.tables["entropy"]["boundary_margin_mean"].values).all()
    for figure in run.figures.values():
        figure.savefig(io.BytesIO(), format="png", dpi=40)
