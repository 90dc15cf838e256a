"""Maps on a real run of a tiny model: places, trust and recovery against scikit-learn; what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from moescope import capture
from moescope.analyses.map import Map
from moescope.analyses.map_figures import apart
from moescope.analyses.projection import comparable, project
from moescope.corpora import Corpus
from moescope.errors import MoescopeWarning, UsageError
from moescope.models import MoEModel, load_model
from moescope.run import Run
from moescope.statistics.output_sample import OutputSample
from tests.analyses.runs import small_corpus, tiny_model
from tests.families import build, save

NUM_TOKENS = 800


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(model: MoEModel, corpus: Corpus) -> Run:
    return capture(model, corpus, [Map(num_samples=20, max_layers=2)], num_tokens=NUM_TOKENS)


def sampled(run: Run, layer: int) -> OutputSample:
    statistic = run.statistics["output_sample"]
    assert isinstance(statistic, OutputSample)
    return statistic


def test_points_are_the_sample_and_numbers_are_scikit_learns(run: Run, model: MoEModel) -> None:
    table, frames = run.tables["map"], dict(run.frames())
    places, quality = frames["map"], frames["map_quality"].set_index("layer")
    assert quality.index.tolist() == [0, 3]
    for layer in (0, 3):
        sample = sampled(run, layer).sample(layer)
        own = places[places.layer == layer]
        assert own.expert.tolist() == sample.expert_ids_N.tolist() and (own.groupby("expert").size() <= 20).all()
        assert own.document.nunique() == sample.num_documents == quality.num_documents[layer]
        assert own.token_id.tolist() == sample.token_ids_N.tolist()
        points = comparable(sample.outputs_NM.numpy(), "cosine")
        norms = np.linalg.norm(points, axis=1)
        np.testing.assert_allclose(norms[norms > 0], 1)
        expected = trustworthiness(points, own[["x", "y"]].to_numpy(), n_neighbors=15)
        assert quality.trustworthiness[layer] == pytest.approx(expected, abs=1e-3)
        assert quality.trustworthiness[layer] > 0.8
        shares = PCA(min(100, len(points) - 1, 32)).fit(points).explained_variance_ratio_
        assert quality.variance_explained[layer] == pytest.approx(shares.sum())
        assert quality.variance_explained_xy[layer] == pytest.approx(shares[:2].sum())
        # recovery, by a loop
        right = 0
        for number in range(len(points)):
            distances = np.linalg.norm(points - points[number], axis=1)
            distances[(sample.document_hashes_N == sample.document_hashes_N[number]).numpy()] = np.inf
            near = sample.expert_ids_N[np.argsort(distances)[:15]]
            counts = torch.bincount(near, minlength=8)
            best = (counts == counts.max()).nonzero().flatten().tolist()
            ranks = {label: int((near == label).nonzero().sum()) for label in best}
            right += int(min(ranks, key=lambda label: (ranks[label], label))) == int(sample.expert_ids_N[number])
        # the same word at a window's start puts out the same: which of equals is nearer is anyone's guess
        assert quality.expert_accuracy[layer] == pytest.approx(right / len(points), abs=0.02)
        assert quality.expert_ci_low[layer] < quality.expert_accuracy[layer] <= quality.expert_ci_high[layer]
        assert quality.expert_chance[layer] == pytest.approx(own.expert.value_counts().max() / len(own))
        assert quality.domain_chance[layer] == pytest.approx(own.domain.value_counts().max() / len(own))
    assert table.attrs["method"] == "umap" and run.manifest.options["map"]["num_neighbors"] == 15
    assert (quality.seed == 0).all() and (quality.num_epochs == 200).all()


def test_the_same_seed_gives_the_same_places(run: Run, model: MoEModel, corpus: Corpus) -> None:
    # UMAP's first use in a process changes the last bits of what torch computes after it, so both runs come after one.
    assert run.tables["map"]
    once, again = (capture(model, corpus, [Map(num_samples=20, max_layers=2)], num_tokens=NUM_TOKENS) for _ in range(2))
    assert dict(again.frames())["map"].equals(dict(once.frames())["map"])


def test_pca_is_the_first_two_components(model: MoEModel, corpus: Corpus, tmp_path: Path) -> None:
    run = capture(model, corpus, [Map(method="pca", metric="euclidean")], num_tokens=NUM_TOKENS, layers=[2])
    outputs = sampled(run, 2).sample(2).outputs_NM.double().numpy()
    centred = outputs - outputs.mean(0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    xy = dict(run.frames())["map"][["x", "y"]].to_numpy()
    np.testing.assert_allclose(np.abs(xy), np.abs(centred @ rows[:2].T), rtol=1e-3, atol=1e-4)
    quality = dict(run.frames())["map_quality"]
    assert quality.method.tolist() == ["pca"] and quality.min_dist.isna().all()
    assert quality.variance_explained_xy[0] == pytest.approx((values[:2] ** 2).sum() / (values**2).sum())
    names = []
    for name, figure in run.figures():
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        names.append(name)
    assert names == ["map_layer_2", "map_each_expert_layer_2", "map_means", "map_recovery"]


def test_experts_that_saw_no_token_and_points_too_few_for_umap(model: MoEModel, corpus: Corpus) -> None:
    run = capture(model, corpus, [Map(num_neighbors=5)], num_tokens=4, layers=[1])
    with pytest.warns(MoescopeWarning, match=r"no token.* layer 1: expert"):
        table = run.tables["map"]
    assert [note for note in run.manifest.notes if "layer 1: expert" in note]
    seen = set(table.point_expert.values.tolist())
    assert len(seen) < 8 and len(table.point) == 8
    assert np.array_equal(np.isnan(table.mean_x.values[0]), [expert not in seen for expert in range(8)])
    for _, figure in run.figures():
        figure.canvas.draw()
    shared = capture(model, corpus, [Map(num_neighbors=7, num_samples=1)], num_tokens=4, layers=[1])
    with pytest.warns(MoescopeWarning, match=r"UMAP .*\b7\b.*PCA"):
        table = shared.tables["map"]
    assert table.method.values.tolist() == ["pca"] and len(table.point) < 8


@pytest.mark.parametrize(
    ("options", "num_tokens", "said"),
    [
        ({"num_neighbors": 400}, 1000, "400 neighbours asked of at most 400 outputs"),
        ({}, 7, "15 neighbours asked of at most 14 outputs"),
        ({"num_neighbors": 1}, 1000, "at least 1 output"),
        ({"method": "pca"}, 1, "at most 2 outputs"),
    ],
)
def test_what_cannot_be_mapped_is_refused_before_any_text_is_read(
    model: MoEModel, corpus: Corpus, options: dict, num_tokens: int, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as refused:
        capture(model, corpus, [Map(**options)], num_tokens=num_tokens)
    assert "--num-neighbors" in str(refused.value)


def test_a_family_with_shared_experts(corpus: Corpus, tmp_path: Path) -> None:
    model = load_model(str(save(build("deepseek_v3"), tmp_path)), device="cpu", layers=[3])
    run = capture(model, corpus, [Map(method="pca", num_samples=10)], num_tokens=300, layers=[3])
    sample = sampled(run, 3).sample(3)
    assert run.tables["map"].num_experts.values.tolist() == [sample.expert_ids_N.unique().shape[0]]
    assert int(sample.expert_ids_N.max()) < model.num_experts
    for _, figure in run.figures():
        figure.canvas.draw()


def test_numbers_are_moved_apart() -> None:
    places = np.random.default_rng(0).normal(scale=0.25, size=(64, 2)) + 1.5
    boxes, limits = np.full((64, 2), [0.14, 0.1]), np.array([3.0, 3.0])
    moved = apart(places, boxes, limits)
    offset = np.abs(moved[:, None] - moved[None])
    covers = ((boxes[0] - offset) > 1e-6).all(axis=2)
    assert not np.triu(covers, 1).any()
    assert (moved >= boxes / 2 - 1e-9).all() and (moved <= limits - boxes / 2 + 1e-9).all()
    lone = np.array([[1.0, 1.0], [2.0, 2.0]])
    np.testing.assert_allclose(apart(lone, boxes[:2], limits), lone, atol=1e-3)


def test_what_has_no_places() -> None:
    with pytest.raises(ValueError, match="too few"):
        project(np.eye(2), "pca", num_neighbors=1, seed=0)
    with pytest.raises(ValueError, match="too few"):
        project(np.eye(10), "umap", num_neighbors=10, seed=0)
    with pytest.raises(ValueError, match="the same"):
        project(np.ones((10, 3)), "pca", num_neighbors=2, seed=0)
    assert project(np.eye(20), "umap", num_neighbors=19, seed=0).xy.shape == (20, 2)
    line = project(np.arange(5.0)[:, None], "pca", num_neighbors=2, seed=0)
    assert line.xy.shape == (5, 2) and (line.xy[:, 1] == 0).all()
