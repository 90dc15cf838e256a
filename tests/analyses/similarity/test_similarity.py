"""Similarity of experts on a real run of a tiny model, against a plain loop over stored outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import moescope
from moescope.analyses.base import Given
from moescope.analyses.similarity.analysis import Similarity
from moescope.analyses.similarity.expert_runs import resampled, resampled_experts, trained
from moescope.analyses.weights.analysis import Weights
from moescope.corpora import Corpus, Sampler
from moescope.errors import MoescopeWarning, UsageError
from moescope.models import MoEModel, load_model
from moescope.models.weights import expert_weights
from moescope.one_pass import feed
from moescope.run import Run
from moescope.statistics.samples.inputs import LayerInputs
from tests.analyses.runs import small_corpus, tiny_model
from tests.families import SOME_FAMILIES, build, save
from tests.statistics.test_cka import all_pairs, debiased_cka, deconfounded_cka, linear_cka, unbiased_hsic

LAYERS = [0, 2]
SAMPLES = 700


def compared(model: MoEModel, corpus: Corpus, layers: list[int], num_tokens: int = 1500, **options) -> Run:
    return moescope.capture(model, corpus, analyses=[Similarity(**options)], num_tokens=num_tokens, layers=layers)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(model: MoEModel, corpus: Corpus) -> Run:
    return compared(model, corpus, LAYERS, num_samples=SAMPLES)


@pytest.fixture(scope="module")
def exact(model: MoEModel, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Run:
    scratch = tmp_path_factory.mktemp("scratch")
    result = compared(model, corpus, LAYERS, num_samples=SAMPLES, estimator="exact", scratch=str(scratch))
    assert result.tables
    assert not list(scratch.iterdir())
    return result


def inputs_of(run: Run) -> LayerInputs:
    (statistic,) = run.statistics.values()
    assert isinstance(statistic, LayerInputs)
    return statistic


def stored_outputs(run: Run, model: MoEModel, layer: int) -> tuple[np.ndarray, np.ndarray]:
    sample = inputs_of(run).sample(layer)
    outputs = model.expert_outputs(layer, sample.inputs_NM)
    return outputs.double().numpy(), sample.inputs_NM.double().numpy()


def test_exact_is_the_formulas_on_the_experts_own_outputs(exact: Run, model: MoEModel) -> None:
    for layer in LAYERS:
        outputs, inputs = stored_outputs(exact, model, layer)
        at = exact.tables["similarity"].sel(layer=layer)
        assert int(at.num_samples) == SAMPLES
        # half precision on disk: 2^-11 of each number
        np.testing.assert_allclose(at.cka, all_pairs(debiased_cka, outputs), atol=3e-4)
        np.testing.assert_allclose(at.linear_cka, all_pairs(linear_cka, outputs), atol=3e-4)
        np.testing.assert_allclose(at.deconfounded_cka, all_pairs(deconfounded_cka, outputs, inputs), atol=1e-3)
        for name, center in (("cosine", 0.0), ("centered_cosine", outputs.mean(1, keepdims=True))):
            unit = (outputs - center) / np.linalg.norm(outputs - center, axis=-1, keepdims=True)
            np.testing.assert_allclose(at[name], np.einsum("int,jnt->ij", unit, unit) / SAMPLES, atol=3e-4)


def test_minibatches_are_cut_in_the_order_of_the_sample(run: Run, model: MoEModel) -> None:
    outputs, _ = stored_outputs(run, model, 2)
    parts = [outputs[:, start:end] for start, end in ((0, 233), (233, 466), (466, 700))]
    mean = np.mean([all_pairs(unbiased_hsic, part) for part in parts], axis=0)
    expected = mean / np.sqrt(np.outer(mean.diagonal(), mean.diagonal()))
    np.testing.assert_allclose(run.tables["similarity"].cka.sel(layer=2), expected, atol=1e-5)


def test_exact_and_minibatches_agree_within_their_intervals(run: Run, exact: Run) -> None:
    i_P, j_P = np.triu_indices(8, 1)
    for name in ("cka", "deconfounded_cka", "cosine", "centered_cosine"):
        ours, theirs = run.tables["similarity"], exact.tables["similarity"]
        low, high = (ours[f"{name}_{end}"].values[:, i_P, j_P] for end in ("ci_low", "ci_high"))
        other_low, other_high = (theirs[f"{name}_{end}"].values[:, i_P, j_P] for end in ("ci_low", "ci_high"))
        assert ((low <= other_high) & (other_low <= high)).all(), name
        assert (low < high).all(), name


def test_exact_and_minibatches_agree_on_nano(tmp_path: Path) -> None:
    nano, texts = load_model("nano", layers=[7]), moescope.load_corpus("embedded")
    one, other = (
        compared(nano, texts, [7], 3000, num_samples=1024, estimator=estimator, control=False, scratch=str(tmp_path))
        for estimator in ("minibatch", "exact")
    )
    i_P, j_P = np.triu_indices(64, 1)
    for name in ("cka", "deconfounded_cka"):
        low, high, other_low, other_high = (
            run.tables["similarity"][f"{name}_{end}"].values[0, i_P, j_P]
            for run in (one, other)
            for end in ("ci_low", "ci_high")
        )
        assert ((low <= other_high) & (other_low <= high)).all(), name
        values, others = (run.tables["similarity"][name].values[0, i_P, j_P] for run in (one, other))
        assert np.corrcoef(values, others)[0, 1] > 0.9, name
        assert abs(values.mean() - others.mean()) < 0.01, name


def again(run: Run, model: MoEModel, statistics: dict, **options) -> xr.Dataset:
    """The table anew, from other statistics or with other options."""
    analysis = Similarity(num_samples=SAMPLES, **options)
    return analysis.table(statistics, run.context, Given(analysis.measure(model, statistics, run.context)))


def test_shards_merged_are_the_whole(run: Run, model: MoEModel, corpus: Corpus) -> None:
    whole = inputs_of(run)
    shards = [whole.empty() for _ in range(3)]
    for number, batch in enumerate(Sampler(corpus, model.tokenizer, num_tokens=1500, max_positions=256)):
        feed(model, [batch], [shards[number % 3]], layers=LAYERS)
    merged = shards[2].merge(shards[0]).merge(shards[1])
    assert torch.equal(merged.state["hashes_LN"], whole.state["hashes_LN"])
    (key,) = run.statistics
    table = again(run, model, {key: merged})
    for name in ("cka", "cka_ci_low", "cka_control", "cosine"):
        np.testing.assert_allclose(table[name], run.tables["similarity"][name], atol=1e-6)


def test_a_table_with_the_baseline_holds_all_that_one_without_has(run: Run, model: MoEModel) -> None:
    table, without = run.tables["similarity"], again(run, model, run.statistics, control=False)
    assert not [name for name in without if "redrawn" in name]
    assert without.equals(table[list(without.data_vars)])
    whole, part = Similarity(), Similarity(control=False)
    assert whole.answers(part) and whole.answers(whole) and part.answers(part) and not part.answers(whole)
    assert whole.answers(Similarity(method="cka")) and not whole.answers(Similarity(method="cosine"))
    assert not whole.answers(Similarity(num_samples=SAMPLES, control=False)) and not whole.answers(Weights())
    assert set(whole.statistics(run.context)) != set(run.statistics)


def test_options_are_those_used(run: Run) -> None:
    assert run.manifest.options["similarity"]["method"] == "cka"
    assert Similarity(mode="routed").options["method"] == "cosine"


def test_routed_mode_and_its_gaps(model: MoEModel, corpus: Corpus, tmp_path: Path) -> None:
    with pytest.warns(MoescopeWarning, match=r"no token was routed to|share no token"):
        run = compared(model, corpus, [1], 30, mode="routed")
    at = run.tables["similarity"].sel(layer=1)
    assert np.array_equal(np.isnan(at.cosine.values), at.num_shared.values == 0)
    assert int(at.num_selected.sum()) == 30 * 2
    for name, figure in run.figures.items():
        assert name == "similarity_layer_1"
        figure.savefig(tmp_path / "routed.png", dpi=60)
        assert "no value" in " ".join(text.get_text() for text in figure.texts)
    frames = dict(run.frames)
    assert (frames["similarity_pairs"].num_shared > 0).all()
    known = int((np.triu(at.num_shared.values, 1) > 0).sum())
    assert frames["similarity"][["num_pairs", "num_gaps"]].values.tolist() == [[known, 28 - known]]


def test_an_expert_whose_output_is_zero_is_a_gap_that_is_warned_of(corpus: Corpus, tmp_path: Path) -> None:
    model = tiny_model(tmp_path)
    with torch.no_grad():
        model.experts(1).down_proj[5] = 0.0
    with pytest.warns(MoescopeWarning, match="layer 1: the same output for every token of expert 5"):
        run = compared(model, corpus, [1], 300)
    assert [note for note in run.manifest.notes if "expert 5" in note]
    cka = run.tables["similarity"].cka.sel(layer=1)
    others = np.arange(8) != 5
    assert np.isnan(cka.values[5]).all()
    assert np.isfinite(cka.values[np.ix_(others, others)]).all()


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_one_layer_of_a_model_with_shared_experts(family: str, corpus: Corpus, tmp_path: Path) -> None:
    save(build(family), tmp_path)
    model = load_model(str(tmp_path), device="cpu", layers=[2])
    assert model.num_shared_experts
    run = compared(model, corpus, [2], 400)
    at, inputs = run.tables["similarity"].sel(layer=2), inputs_of(run).sample(2).inputs_NM
    parts = [model.expert_outputs(2, part).double().numpy() for part in inputs.split(200)]
    mean = np.mean([all_pairs(unbiased_hsic, part) for part in parts], axis=0)
    np.testing.assert_allclose(at.cka, mean / np.sqrt(np.outer(mean.diagonal(), mean.diagonal())), atol=1e-5)
    assert at.sizes["expert"] == model.num_experts


def test_tables_arrays_and_figures(run: Run, tmp_path: Path) -> None:
    table, frames = run.tables["similarity"], dict(run.frames)
    summary = frames["similarity"]
    assert summary[["layer", "measure"]].values.tolist() == [
        [layer, name]
        for layer in LAYERS
        for name in ("cka", "deconfounded_cka", "linear_cka", "cosine", "centered_cosine")
    ]
    first = summary.iloc[0]
    above = np.triu_indices(8, 1)
    assert first["median"] == pytest.approx(np.median(table.cka.values[0][above]))
    assert first["median_control"] == pytest.approx(np.median(table.cka_control.values[0][above]))
    pairs = frames["similarity_pairs"]
    assert pairs.cka[pairs.layer == 0].is_monotonic_decreasing
    assert len(pairs) == 2 * 20
    assert run.arrays["similarity"]["cka"].shape == (2, 8, 8)
    names = []
    for name, figure in run.figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        names.append(name)
    assert names == [
        "similarity_by_layer", "similarity_layer_0", "similarity_layer_0_controls", "similarity_layer_2",
        "similarity_layer_2_controls",
    ]  # fmt: skip


def test_many_layers_have_a_page_of_small_maps(model: MoEModel, corpus: Corpus) -> None:
    run = compared(model, corpus, [0, 1, 2, 3], 300, method="cosine")
    names = list(run.figures)
    assert names[:2] == ["similarity_by_layer", "similarity_all_layers"]
    assert names[2::2] == ["similarity_layer_0", "similarity_layer_2", "similarity_layer_3"]


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_resampled_experts_keep_the_scale_of_every_matrix_and_nothing_else(family: str, tmp_path: Path) -> None:
    model = load_model(str(save(build(family), tmp_path)), device="cpu")
    layer = model.layers[-1]
    own, other = model.experts(layer), resampled_experts(model.experts(layer), seed=1)
    before, after = expert_weights(own), expert_weights(other)
    for name in ("gate_EFM", "up_EFM", "down_EMF"):
        ours, theirs = getattr(before, name), getattr(after, name)
        if ours is None:
            continue
        cosine = torch.nn.functional.cosine_similarity(ours.flatten(1), theirs.flatten(1))
        assert cosine.abs().max() < 0.3, name
        torch.testing.assert_close(theirs.flatten(1).norm(dim=1), ours.flatten(1).norm(dim=1), rtol=0.2, atol=0)
    inputs = torch.randn(30, model.model_width, generator=torch.Generator().manual_seed(0))
    outputs, control = trained(model, layer)(inputs), resampled(model, layer)(inputs)
    torch.testing.assert_close(outputs[:-1], model.expert_outputs(layer, inputs), rtol=0, atol=0)
    assert torch.equal(outputs[-1], inputs) and torch.equal(control[-1], inputs)
    assert not torch.isclose(outputs[:-1], control[:-1]).all(dim=(1, 2)).any()


@pytest.mark.parametrize(
    ("num_tokens", "options", "said"),
    [
        (3, {}, "cka of 3 tokens"),
        (1500, {"num_samples": 2}, "cka of 2 tokens"),
        (1500, {"mode": "routed", "method": "cka"}, "`method=cka` .* routed mode"),
        (1500, {"num_samples": 0}, "`num_samples=0`"),
    ],
)
def test_bad_input(num_tokens: int, options: dict, said: str, model: MoEModel, corpus: Corpus) -> None:
    with pytest.raises(UsageError, match=said):
        compared(model, corpus, [0], num_tokens, **options)


def test_similarity_without_a_baseline_is_not_testable(model: MoEModel, corpus: Corpus) -> None:
    (finding,) = compared(model, corpus, [0], 300, control=False).findings
    assert (finding.topic, finding.verdict) == ("similarity", "not testable")


def test_a_corpus_that_gives_too_few_tokens_is_refused(model: MoEModel, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("ab")
    with pytest.raises(UsageError, match="cka of 2 tokens"):
        compared(model, moescope.load_corpus(str(tmp_path)), [0], 100)
