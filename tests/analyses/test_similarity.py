"""Similarity of experts on a real run of a tiny model, against a plain loop over stored outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moescope.analyses.expert_runs import redrawn, redrawn_experts, trained
from moescope.analyses.similarity import SimilarityRun, all_tokens, similarity
from moescope.analyses.similarity_figures import clustered
from moescope.corpora import Corpus, Sampler
from moescope.errors import MoescopeWarning, UsageError
from moescope.models import MoEModel, load_model
from moescope.models.weights import expert_weights
from moescope.one_pass import feed
from moescope.statistics.inputs_sample import LayerInputs
from tests.analyses.runs import small_corpus, tiny_model
from tests.families import FAMILIES, build, save
from tests.statistics.test_cka import all_pairs, debiased_cka, deconfounded_cka, linear_cka, unbiased_hsic

LAYERS = [0, 2]
SAMPLES = 700


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(model: MoEModel, corpus: Corpus) -> SimilarityRun:
    return similarity(model, corpus, num_tokens=1500, num_samples=SAMPLES, layers=LAYERS)


@pytest.fixture(scope="module")
def exact(model: MoEModel, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> SimilarityRun:
    scratch = tmp_path_factory.mktemp("scratch")
    result = similarity(
        model, corpus, num_tokens=1500, num_samples=SAMPLES, layers=LAYERS, estimator="exact", scratch=scratch
    )
    assert not list(scratch.iterdir())
    return result


def stored_outputs(run: SimilarityRun, model: MoEModel, layer: int) -> tuple[np.ndarray, np.ndarray]:
    statistic = run.statistics["layer_inputs"]
    assert isinstance(statistic, LayerInputs)
    sample = statistic.sample(layer)
    outputs = model.expert_outputs(layer, sample.inputs_NM)
    return outputs.double().numpy(), sample.inputs_NM.double().numpy()


def test_exact_is_the_formulas_on_the_experts_own_outputs(exact: SimilarityRun, model: MoEModel) -> None:
    for layer in LAYERS:
        outputs, inputs = stored_outputs(exact, model, layer)
        at = exact.table.sel(layer=layer)
        assert int(at.num_samples) == SAMPLES
        # half precision on disk: 2^-11 of each number
        np.testing.assert_allclose(at.cka, all_pairs(debiased_cka, outputs), atol=3e-4)
        np.testing.assert_allclose(at.linear_cka, all_pairs(linear_cka, outputs), atol=3e-4)
        np.testing.assert_allclose(at.deconfounded_cka, all_pairs(deconfounded_cka, outputs, inputs), atol=1e-3)
        for name, centre in (("cosine", 0.0), ("centred_cosine", outputs.mean(1, keepdims=True))):
            unit = (outputs - centre) / np.linalg.norm(outputs - centre, axis=-1, keepdims=True)
            np.testing.assert_allclose(at[name], np.einsum("int,jnt->ij", unit, unit) / SAMPLES, atol=3e-4)


def test_minibatches_are_cut_in_the_order_of_the_sample(run: SimilarityRun, model: MoEModel) -> None:
    outputs, _ = stored_outputs(run, model, 2)
    parts = [outputs[:, start:end] for start, end in ((0, 233), (233, 466), (466, 700))]
    mean = np.mean([all_pairs(unbiased_hsic, part) for part in parts], axis=0)
    expected = mean / np.sqrt(np.outer(mean.diagonal(), mean.diagonal()))
    np.testing.assert_allclose(run.table.cka.sel(layer=2), expected, atol=1e-5)


def test_exact_and_minibatches_agree_within_their_intervals(run: SimilarityRun, exact: SimilarityRun) -> None:
    i_P, j_P = np.triu_indices(8, 1)
    for name in ("cka", "deconfounded_cka", "cosine", "centred_cosine"):
        ours, theirs = run.table, exact.table
        low, high = (ours[f"{name}_{end}"].values[:, i_P, j_P] for end in ("low", "high"))
        other_low, other_high = (theirs[f"{name}_{end}"].values[:, i_P, j_P] for end in ("low", "high"))
        assert ((low <= other_high) & (other_low <= high)).all(), name
        assert (low < high).all(), name


def test_shards_merged_are_the_whole(run: SimilarityRun, model: MoEModel, corpus: Corpus) -> None:
    whole = run.statistics["layer_inputs"]
    assert isinstance(whole, LayerInputs)
    shards = [whole.empty() for _ in range(3)]
    for number, batch in enumerate(Sampler(corpus, model.tokenizer, num_tokens=1500, max_positions=256)):
        feed(model, [batch], [shards[number % 3]], layers=LAYERS)
    merged = shards[2].merge(shards[0]).merge(shards[1])
    assert torch.equal(merged.state["hashes_LN"], whole.state["hashes_LN"])
    table = all_tokens(merged, model)
    for name in ("cka", "cka_low", "cka_redrawn", "cosine"):
        np.testing.assert_allclose(table[name], run.table[name], atol=1e-6)


def test_routed_mode_and_its_gaps(model: MoEModel, corpus: Corpus) -> None:
    with pytest.warns(MoescopeWarning, match=r"saw no token|share no token"):
        run = similarity(model, corpus, mode="routed", num_tokens=30, layers=[1])
    at = run.table.sel(layer=1)
    assert run.main == "cosine" and any("gap" in note for note in run.notes)
    assert np.array_equal(np.isnan(at.cosine.values), at.num_shared.values == 0)
    assert int(at.num_selected.sum()) == 30 * 2
    for name, figure in run.figures():
        assert name == "similarity_layer_1"
        figure.canvas.draw()
    frames = run.frames()
    assert (frames["similarity_pairs"].num_shared > 0).all()
    assert int(frames["similarity"].num_pairs[0]) == int((np.triu(at.num_shared.values, 1) > 0).sum())


def test_tables_arrays_and_figures(run: SimilarityRun, tmp_path: Path) -> None:
    frames = run.frames()
    summary = frames["similarity"]
    assert summary[["layer", "measure"]].values.tolist() == [
        [layer, name]
        for layer in LAYERS
        for name in ("cka", "deconfounded_cka", "linear_cka", "cosine", "centred_cosine")
    ]
    first = summary.iloc[0]
    above = np.triu_indices(8, 1)
    assert first["median"] == pytest.approx(np.median(run.table.cka.values[0][above]))
    assert first["median_redrawn"] == pytest.approx(np.median(run.table.cka_redrawn.values[0][above]))
    pairs = frames["similarity_pairs"]
    assert pairs.cka[pairs.layer == 0].is_monotonic_decreasing and len(pairs) == 2 * 20
    assert run.arrays()["similarity"]["cka"].shape == (2, 8, 8)
    names = []
    for name, figure in run.figures():
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        names.append(name)
    assert names == [
        "similarity_by_layer", "similarity_layer_0", "similarity_controls_layer_0", "similarity_layer_2",
        "similarity_controls_layer_2",
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_redrawn_experts_keep_the_scale_of_every_matrix_and_nothing_else(family: str, tmp_path: Path) -> None:
    model = load_model(str(save(build(family), tmp_path)), device="cpu")
    layer = model.layers[-1]
    own, other = model.experts(layer), redrawn_experts(model.experts(layer), seed=1)
    before, after = expert_weights(own), expert_weights(other)
    for name in ("gate_EFM", "up_EFM", "down_EMF"):
        ours, theirs = getattr(before, name), getattr(after, name)
        if ours is None:
            continue
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(1), theirs.flatten(1))
        assert cosine.abs().max() < 0.3, name
        torch.testing.assert_close(theirs.flatten(1).norm(dim=1), ours.flatten(1).norm(dim=1), rtol=0.2, atol=0)
    inputs = torch.randn(30, model.model_width, generator=torch.Generator().manual_seed(0))
    outputs, control = trained(model, layer)(inputs), redrawn(model, layer)(inputs)
    torch.testing.assert_close(outputs[:-1], model.expert_outputs(layer, inputs), rtol=0, atol=0)
    assert torch.equal(outputs[-1], inputs) and torch.equal(control[-1], inputs)
    assert not torch.isclose(outputs[:-1], control[:-1]).all(dim=(1, 2)).any()


def test_the_order_of_a_dendrogram_puts_gaps_last() -> None:
    similarity_EE = np.full((5, 5), 0.1)
    similarity_EE[0, 4] = similarity_EE[4, 0] = 0.9
    np.fill_diagonal(similarity_EE, 1.0)
    similarity_EE[2] = similarity_EE[:, 2] = np.nan
    order, tree = clustered(similarity_EE)
    assert order[-1] == 2 and abs(order.index(0) - order.index(4)) == 1
    assert tree is not None and tree.shape == (3, 4)


def test_bad_input(model: MoEModel, corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="cka of 3 tokens"):
        similarity(model, corpus, num_tokens=3)
    with pytest.raises(UsageError, match="cka of 2 tokens"):
        similarity(model, corpus, num_samples=2)
    with pytest.raises(UsageError, match="routed mode"):
        similarity(model, corpus, method="cka", mode="routed")
    with pytest.raises(UsageError, match="MoE layers"):
        similarity(model, corpus, layers=[9])
