"""The atlas of a tiny model over a small folder of text, against plain loops over the same documents."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import moescope
from moescope.analyses.atlas.analysis import Atlas
from moescope.analyses.atlas.options import SAMPLE_TOKENS
from moescope.analyses.registry import find
from moescope.errors import UsageError
from moescope.interventions.ablation import Ablation
from moescope.interventions.document_effects import measure_ablations, measure_first_order
from moescope.measures.constants import MIN_DOCUMENTS
from moescope.measures.resampling import halves
from moescope.models import load_model
from tests.analyses.runs import small_corpus, tiny_model
from tests.families import build, save


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def run_of(model, corpus, **options):
    analysis = Atlas(**{"num_exact": 6, "exact_tokens": 900, **options})
    return moescope.capture(model, corpus, analyses=[analysis], num_tokens=3000, predictions=False)


@pytest.fixture(scope="module")
def run(model, corpus):
    return run_of(model, corpus)


@pytest.fixture(scope="module")
def frames(run):
    return run.frames


@pytest.fixture(scope="module")
def documents(run):
    (sample,) = [kept for name, kept in run.statistics.items() if name.startswith("atlas_text")]
    return [document for domain in range(3) for document in sample.documents(domain)]


def half_of(document) -> int:
    return int(halves(np.array([document.document_hash]), seed=0)[0])


def test_every_cell_is_the_mean_over_the_domains_predicted_tokens(run, frames, documents, model) -> None:
    effects_GLE = measure_first_order(model, documents, model.layers).estimates_GLE
    predicted_G = np.array([int((document.next_token_ids >= 0).sum()) for document in documents])
    frame = frames["atlas"].set_index(["layer", "domain", "expert"])
    assert len(frame) == 4 * 4 * 8
    for domain_id, domain in enumerate(["all", *run.context.domains], start=-1):
        at_G = np.array([domain_id in (-1, document.domain_id) for document in documents])
        for layer in (0, 3):
            for expert in range(8):
                row = frame.loc[(layer, domain, expert)]
                assert row["num_tokens"] == predicted_G[at_G].sum()
                assert row["num_documents"] == at_G.sum()
                total = effects_GLE[at_G, layer, expert].sum()
                assert row["delta_loss"] == pytest.approx(total / predicted_G[at_G].sum(), abs=1e-6)
                if row["num_selected"]:
                    assert row["delta_loss_routed"] == pytest.approx(total / row["num_selected"], abs=1e-5)
                known = np.isfinite(row["ci_low"])
                assert known or row["num_documents"] < MIN_DOCUMENTS or row["effective_documents"] < 5
                assert not known or (row["num_documents"] >= MIN_DOCUMENTS and row["effective_documents"] >= 3)
                assert known == np.isfinite(row["p_value"])
                assert not (row["ci_low"] > row["delta_loss"] or row["delta_loss"] > row["ci_high"])


def test_some_experts_are_ablated_exactly(run, frames, documents, model) -> None:
    frame = frames["atlas_ablated"]
    assert len(frame) == 6
    assert not frame.duplicated(["layer", "expert"]).any()
    ablations = [Ablation(int(row.layer), (int(row.expert),)) for row in frame.itertuples()]
    used = [
        document
        for domain in range(3)
        for place, document in enumerate(d for d in documents if d.domain_id == domain)
        if sum(len(d.token_ids) for d in [d for d in documents if d.domain_id == domain][:place]) < 300
    ]
    assert frame["num_documents"].tolist() == [len(used)] * 6
    assert len(used) < len(documents)
    tokens = sum(int((document.next_token_ids >= 0).sum()) for document in used)
    assert frame["num_tokens"].tolist() == [tokens] * 6
    exact_P = measure_ablations(model, used, ablations).sum(0) / tokens
    assert np.allclose(frame["delta_loss"], exact_P, atol=1e-6)
    first = measure_first_order(model, used, model.layers).estimates_GLE.sum(0) / tokens
    expected = [first[a.layer, a.experts[0]] for a in ablations]
    assert np.allclose(frame["delta_loss_gradient"], expected, atol=1e-6)
    relations = frames["atlas_relations"]
    found = relations[(relations.effect == "ablated") & (relations.predictor == "gradient")].iloc[0]
    assert found.rank_correlation == pytest.approx(spearmanr(expected, exact_P).statistic)
    assert found.num == 6


def test_predictors_are_correlated_over_all_experts(run, frames) -> None:
    relations, atlas = frames["atlas_relations"], frames["atlas"]
    every = atlas[atlas.domain == "all"].sort_values(["layer", "expert"])
    row = relations[
        (relations.effect == "gradient")
        & (relations.predictor == "selection frequency")
        & (relations.scope == "all layers")
    ].iloc[0]
    assert row.num == 32
    assert row.rank_correlation == pytest.approx(spearmanr(every.num_selected, every.delta_loss).statistic)
    assert row.ci_low < row.rank_correlation < row.ci_high
    specialization = relations[(relations.predictor == "domain specialization")].iloc[0]
    by_domain = [
        spearmanr(rows.num_selected, rows.delta_loss).statistic
        for domain, rows in atlas.groupby("domain")
        if domain != "all"
    ]
    assert specialization.rank_correlation == pytest.approx(np.tanh(np.mean(np.arctanh(by_domain))))
    assert specialization.num == 3 * 32
    assert ((relations.null_low <= 0) & (relations.null_high >= 0)).all()
    assert relations.p_value.between(0.001, 1).all()


def test_defaults_are_those_of_the_command_and_smaller_in_a_report() -> None:
    assert (Atlas().sample_tokens, SAMPLE_TOKENS) == (None, {"gradient": 40_000, "exact": 5_000})
    assert find("atlas", in_report=True) == Atlas(
        sample_tokens=24_000, num_exact=24, exact_tokens=2_000, named_tokens=4_000
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"method": "guess"}, "`method=guess`"),
        ({"sample_tokens": 0}, "`sample_tokens=0`"),
        ({"num_exact": -1}, "`num_exact=-1`"),
        ({"exact_tokens": 0}, "`exact_tokens=0`"),
        ({"named_tokens": -1}, "`named_tokens=-1`"),
    ],
)
def test_options_that_make_no_sense(options, named) -> None:
    with pytest.raises(UsageError, match=named):
        Atlas(**options)


def test_named_experts_are_chosen_on_one_half_and_ablated_on_the_other(run, frames, documents, model) -> None:
    table, top = run.tables["atlas"], frames["atlas_top"]
    assert top.groupby("domain").size().tolist() == [3, 3, 3]
    assert set(top.method) == {"gradient"}
    held_out = [document for document in documents if half_of(document)]
    estimates_GLE = measure_first_order(model, held_out, model.layers).estimates_GLE
    for row in top.itertuples():
        at = table.sel(domain=row.domain, layer=row.layer, expert=row.expert)
        domain_id = run.context.domains.index(row.domain)
        at_G = [document.domain_id == domain_id for document in held_out]
        own = [document for document, inside in zip(held_out, at_G, strict=True) if inside]
        tokens = sum(int((document.next_token_ids >= 0).sum()) for document in own)
        assert (row.num_documents, row.num_tokens) == (len(own), tokens)
        measured = measure_ablations(model, own, [Ablation(row.layer, (row.expert,))]).sum() / tokens
        assert row.delta_loss_measured == pytest.approx(measured, abs=1e-6)
        estimate = estimates_GLE[at_G, row.layer, row.expert].sum() / tokens
        assert row.delta_loss_estimate == pytest.approx(estimate, abs=1e-6)
        assert row.delta_loss_estimate == pytest.approx(float(at["evaluation_half_delta_loss"]), abs=1e-9)
        assert row.selection_half_ci_low == pytest.approx(float(at["selection_half_delta_loss_ci_low"]), nan_ok=True)
        assert row.selection_half_delta_loss == float(at["selection_half_delta_loss"])
        whole = table.sel(domain=row.domain)
        assert int(whole["selection_half_num_tokens"] + whole["evaluation_half_num_tokens"]) == int(whole["num_tokens"])
        assert row.num_controls == 7  # all others of the layer
        others = np.delete(whole.sel(layer=row.layer)["evaluation_half_delta_loss"].values, row.expert)
        assert row.delta_loss_control == pytest.approx(others.mean())


def test_the_first_of_each_domain_is_ablated_on_all_domains(model, corpus, documents) -> None:
    frames = run_of(model, corpus, named_tokens=300).frames
    top, measured = frames["atlas_top"], frames["atlas_measured"]
    held_out = [[d for d in documents if d.domain_id == domain and half_of(d)] for domain in range(3)]
    # Of each domain the documents that begin within its 100 of the tokens.
    few = [
        [d for number, d in enumerate(own) if sum(len(before.token_ids) for before in own[:number]) < 100]
        for own in held_out
    ]
    assert sum(map(len, few)) < sum(map(len, held_out))
    for first in top[top["rank"] == 0].drop_duplicates(["layer", "expert"]).itertuples():
        rows = measured[(measured.layer == first.layer) & (measured.expert == first.expert)].set_index("domain")
        assert set(rows.index) == {"all", *corpus.domains}
        for domain, row in rows.iterrows():
            index = None if domain == "all" else corpus.domains.index(domain)
            used = [d for own in few for d in own]
            if index is not None:
                used = (held_out if row["rank"] >= 0 else few)[index]
            tokens = sum(int((document.next_token_ids >= 0).sum()) for document in used)
            assert (row.num_documents, row.num_tokens) == (len(used), tokens)
            effect = measure_ablations(model, used, [Ablation(first.layer, (first.expert,))]).sum() / tokens
            assert row.delta_loss_measured == pytest.approx(effect, abs=1e-6)
            assert len(used) >= 8 or np.isnan(row.p_value)
            assert np.isnan(row.p_value) == np.isnan(row.delta_loss_measured_ci_low)


def test_without_named_experts_nothing_is_ablated_for_them(model, corpus) -> None:
    run = run_of(model, corpus, named_tokens=0)
    assert set(run.frames) == {"atlas", "atlas_ablated", "atlas_relations"}
    assert set(run.figures) == {"atlas_experts", "atlas_ablated", "atlas_relations"}


def test_exact_atlas_of_some_experts(model, corpus, documents) -> None:
    run = run_of(model, corpus, method="exact", experts=(2, 5), sample_tokens=1200)
    frame = run.frames["atlas"]
    assert sorted(frame.expert.unique()) == [2, 5]
    assert len(frame) == 4 * 4 * 2
    (sample,) = [kept for name, kept in run.statistics.items() if name.startswith("atlas_text")]
    kept = [document for domain in range(3) for document in sample.documents(domain)]
    ablations = [Ablation(layer, (expert,)) for layer in model.layers for expert in (2, 5)]
    tokens = sum(int((document.next_token_ids >= 0).sum()) for document in kept)
    expected = measure_ablations(model, kept, ablations).sum(0) / tokens
    every = frame[frame.domain == "all"].sort_values(["layer", "expert"])
    assert np.allclose(every.delta_loss, expected, atol=1e-6)
    relations = run.frames["atlas_relations"]
    assert set(relations.effect) == {"ablated"}
    top = run.frames["atlas_top"]
    assert set(top.method) == {"exact"}
    assert set(top.expert) <= {2, 5}
    for row in top.itertuples():
        own = [d for d in kept if half_of(d) and corpus.domains[d.domain_id] == row.domain]
        tokens = sum(int((document.next_token_ids >= 0).sum()) for document in own)
        effect = measure_ablations(model, own, [Ablation(row.layer, (row.expert,))]).sum() / tokens
        assert row.delta_loss_measured == pytest.approx(effect, abs=1e-6)
    assert set(run.figures) == {f"atlas_{name}" for name in ("experts", "domains", "top", "ablated", "relations")}


def test_figures_are_drawn_and_everything_is_labeled(run, tmp_path) -> None:
    for name, variable in run.tables["atlas"].data_vars.items():
        assert {"units", "definition"} <= set(variable.attrs), name
    folder = run.save(tmp_path / "out")
    drawn = {path.stem for path in (folder / "figures").glob("*.png")}
    assert drawn == {f"atlas_{name}" for name in ("experts", "domains", "top", "ablated", "relations")}
    assert set(pd.read_csv(folder / "tables" / "atlas.csv").columns) >= {"layer", "expert", "domain", "delta_loss"}


def test_the_same_seed_gives_the_same_atlas(model, corpus, run) -> None:
    again = run_of(model, corpus)
    for name in ("atlas", "atlas_relations"):
        pd.testing.assert_frame_equal(again.frames[name], run.frames[name])


def test_what_cannot_be_answered_is_refused_before_any_text(tmp_path, model, corpus) -> None:
    shallow = load_model(str(save(build("olmoe"), tmp_path)), layers=[1], device="cpu")
    with pytest.raises(UsageError, match="only the first layers"):
        run_of(shallow, corpus)
    with pytest.raises(UsageError, match="no expert 9"):
        run_of(model, corpus, experts=(1, 9))


def test_one_domain_and_a_model_looked_at_in_part(model, corpus) -> None:
    analysis = Atlas(num_exact=3, exact_tokens=300)
    part = moescope.capture(
        model, corpus.only([corpus.domains[0]]), analyses=[analysis], num_tokens=600, layers=[2], predictions=False
    )
    frames = part.frames
    assert frames["atlas"].layer.unique().tolist() == [2]
    assert set(frames["atlas_top"].domain) == {corpus.domains[0]}
    assert "lift" not in set(frames["atlas_relations"].predictor)
    assert set(part.figures) == {f"atlas_{name}" for name in ("experts", "top", "ablated", "relations")}
