"""The weights of a tiny model: tables, arrays, figures; no text is read and none is claimed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import moescope
from moescope.analyses.weights.analysis import Weights
from moescope.analyses.weights.matching import Neurons
from moescope.corpora import Corpus
from moescope.errors import MoescopeWarning, UsageError
from moescope.models import MoEModel, load_model
from moescope.report.page import render
from moescope.results import Manifest, Results
from moescope.run import Run
from tests.analyses.runs import small_corpus, tiny_model
from tests.families import SOME_FAMILIES, build, save

LAYERS = [0, 2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model: MoEModel) -> Run:
    return moescope.capture(model, None, ["weights"], layers=LAYERS)


class Unread(Corpus):
    """Any use of its text is an error."""

    def stream(self, *_: object) -> None:  # type: ignore[override]
        raise AssertionError("text was read")


def test_no_text_is_read_and_none_is_claimed(model: MoEModel, tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "text")
    corpus.__class__ = type("Unread", (Unread, type(corpus)), {})
    run = moescope.capture(model, corpus, ["weights"], layers=[1])
    manifest = run.manifest
    assert (manifest.corpus, manifest.corpus_fingerprint, manifest.num_tokens, manifest.domains) == (None, None, 0, [])
    assert "num_tokens" not in manifest.options
    figures = run.figures
    for figure in figures.values():
        print_ = " ".join(text.get_text() for text in figure.texts)
        assert model.name in print_ and "tokens" not in print_ and corpus.name not in print_
    folder = run.save(tmp_path / "out")
    assert Manifest.model_validate_json((folder / "manifest.json").read_text()).corpus is None
    assert "tokens" not in Results.read(folder).headline
    page = render(folder)
    assert re.search(r"\b8 experts", page) and "None" not in page
    with pytest.raises(AssertionError, match="text was read"):
        moescope.capture(model, corpus, ["weights", "coactivation"], layers=[1])


def test_without_a_corpus_only_questions_about_weights(model: MoEModel) -> None:
    with pytest.raises(UsageError, match=r"entropy .*text"):
        moescope.capture(model, None, ["weights", "entropy"])
    run = moescope.capture(model, None, layers=[0])
    assert list(run.analyses) == ["weights", "relations"]
    assert any(note.startswith("entropy was left out") for note in run.manifest.notes)


def test_beside_other_questions_it_claims_no_text_for_itself(model: MoEModel, tmp_path: Path) -> None:
    run = moescope.capture(model, small_corpus(tmp_path), ["weights", "coactivation"], 600, [1])
    assert run.manifest.num_tokens == 600
    prints = {name: " ".join(text.get_text() for text in figure.texts) for name, figure in run.figures.items()}
    assert "600 tokens" in prints["coactivation_by_layer"] and "600 tokens" in prints["relations"]
    assert "tokens" not in prints["weights_by_layer"]


def test_rows_are_those_of_the_matrices(run: Run, model: MoEModel) -> None:
    frames = dict(run.frames)
    summary, above = frames["weights"], np.triu_indices(8, 1)
    assert (summary.num_pairs == 28).all() and (summary.num_pairs_matched == 28).all()
    for layer in LAYERS:
        weights = model.expert_weights(layer)
        neurons = Neurons.of(weights)
        at = summary[summary.layer == layer].set_index(["matrix", "measure"])
        cosine = neurons.cosines()["down"].numpy()[above]
        assert at.loc[("down", "cosine"), "mean"] == pytest.approx(cosine.mean(), abs=1e-6)
        matched = neurons.matched_cosines(np.stack(above, axis=1))["joined"]
        assert at.loc[("joined", "matched_cosine"), "q95"] == pytest.approx(np.quantile(matched, 0.95), abs=1e-5)
        assert weights.router_EM is not None
        rows = weights.router_EM.double().numpy()
        for name, shown in (("router", rows), ("router_centered", rows - rows.mean(0))):
            unit = shown / np.linalg.norm(shown, axis=1, keepdims=True)
            assert at.loc[(name, "cosine"), "median"] == pytest.approx(np.median((unit @ unit.T)[above]), abs=1e-6)
        experts = frames["weights_experts"]
        experts = experts[experts.layer == layer]
        gate = np.linalg.svd(weights.gate_EFM.double().numpy(), compute_uv=False)  # type: ignore[union-attr]
        shares = gate**2 / (gate**2).sum(1, keepdims=True)
        np.testing.assert_allclose(experts.gate_effective_rank, np.exp(-(shares * np.log(shares)).sum(1)), rtol=1e-4)
        np.testing.assert_allclose(experts.router_norm, np.linalg.norm(rows, axis=1), rtol=1e-6)
        pairs = frames["weights_pairs"][frames["weights_pairs"].layer == layer]
        assert pairs.joined_matched_cosine.is_monotonic_decreasing
        assert pairs.joined_matched_cosine.iloc[0] == pytest.approx(matched.max(), abs=1e-6)
        assert not [name for name in pairs if "redrawn" in name]
        first = pairs.iloc[0]
        assert first.up_cosine == pytest.approx(
            float(neurons.cosines()["up"][int(first.expert), int(first.other_expert)]), abs=1e-6
        )


def test_random_experts_are_no_more_similar_than_random_directions(run: Run) -> None:
    """The tiny model's weights are random: its matched cosines are what matching alone gives."""
    summary = dict(run.frames)["weights"]
    matched = summary[(summary.measure == "matched_cosine") & (summary.matrix == "joined")]
    assert (matched["mean"] > 0.1).all()
    np.testing.assert_allclose(matched["mean"], matched["mean_control"], atol=0.02)


def test_a_sample_of_pairs(model: MoEModel) -> None:
    some = moescope.capture(model, None, [Weights(pairs=5)], layers=LAYERS)
    table, again = (
        some.tables["weights"],
        moescope.capture(model, None, [Weights(pairs=5)], layers=LAYERS).tables["weights"],
    )
    known = np.isfinite(table["joined_matched_cosine"].values)
    assert known.sum(axis=(1, 2)).tolist() == [8 + 2 * 5] * 2
    assert table.equals(again)
    whole = moescope.capture(model, None, ["weights"], layers=LAYERS).tables["weights"]["joined_matched_cosine"].values
    np.testing.assert_allclose(table["joined_matched_cosine"].values[known], whole[known], atol=1e-6)
    assert some.manifest.options["weights"] == {"pairs": 5}
    for figure in some.figures.values():
        figure.canvas.draw()
    none = moescope.capture(model, None, [Weights(pairs=0)], layers=[0])
    frame = dict(none.frames)["weights"]
    assert frame[frame.measure == "matched_cosine"]["mean"].isna().all()
    for figure in none.figures.values():
        figure.canvas.draw()
    with pytest.raises(UsageError, match="`pairs=-1`"):
        moescope.capture(model, None, [Weights(pairs=-1)])


def test_what_would_take_long_is_sampled_with_a_warning(model: MoEModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "moescope.analyses.weights.analysis.MOST_WORK", 7.5 * 6 * model.model_width * model.expert_width**2
    )
    with pytest.warns(MoescopeWarning, match=r"7 of the 28 pairs .* `pairs`"):
        table = moescope.capture(model, None, ["weights"], layers=[0]).tables["weights"]
    assert table["num_pairs_matched"].values.tolist() == [7]


def test_files(run: Run, tmp_path: Path) -> None:
    folder = run.save(tmp_path / "out")
    assert {path.stem for path in (folder / "tables").glob("*.csv")} == {
        *("weights", "weights_experts", "weights_pairs", "relations", "relations_pooled")
    }
    assert {path.stem for path in (folder / "figures").glob("*.png")} == {
        *("weights_by_layer", "weights_layer_0", "weights_layer_2", "weights_effective_rank", "weights_spectra"),
        "relations",
    }
    arrays = np.load(folder / "arrays" / "weights.npz")
    assert arrays["joined_matched_cosine"].shape == (2, 8, 8)
    assert arrays["up_singular_value"].shape == arrays["up_singular_value_low"].shape == (2, 16)


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_every_family(family: str, tmp_path: Path) -> None:
    model = load_model(str(save(build(family), tmp_path)), device="cpu")
    run = moescope.capture(model, None, ["weights"])
    table = run.tables["weights"]
    assert table["layer"].values.tolist() == list(model.layers)
    for name, values in table.data_vars.items():
        assert np.isfinite(values.values).all(), name
        assert values.attrs["definition"] and values.attrs["units"], name


def test_experts_without_a_gate_and_routers_that_are_no_map(model: MoEModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.expert_weights(0)
    monkeypatch.setattr(model, "expert_weights", lambda layer: replace(whole, gate_EFM=None, router_EM=None))
    run = moescope.capture(model, None, ["weights"], layers=LAYERS)
    frame = dict(run.frames)["weights"]
    assert set(frame.matrix) == {"up", "down", "joined"}
    for figure in run.figures.values():
        figure.canvas.draw()
