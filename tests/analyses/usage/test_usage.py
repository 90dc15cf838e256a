"""The usage analysis: columns that others rely on, specialists selected and measured on different halves, figures."""

import numpy as np
import pandas as pd
import pytest

from moescope.analyses.usage.analysis import Usage
from moescope.context import Context, ModelInfo
from moescope.statistics.usage import ExpertUsage
from tests.figures.drawing import undrawn
from tests.records import random_batch, random_routings

LAYERS = (1, 4)
DOMAINS = ("law", "code", "verse")
E, K = 8, 2


def model_info() -> ModelInfo:
    return ModelInfo(
        name="toy",
        revision=None,
        family="olmoe",
        config_hash="c0ffee",
        dtype="float32",
        device="cpu",
        num_experts=E,
        num_experts_per_token=K,
        num_shared_experts=0,
        model_width=16,
        expert_width=8,
        vocab_size=50,
        scoring="softmax",
        selects_by="probability",
        complete=True,
        tokenizer=None,
    )


def context(layers=LAYERS, groups=None) -> Context:
    return Context(
        model=model_info(),
        layers=layers,
        domains=DOMAINS,
        groups=groups or {"law": "formal", "code": "code", "verse": "prose"},
        corpus_name="shelf",
        num_tokens=1234,
        seed=3,
        predictions=False,
    )


def table_of(context, num_documents=120, domain_ids=None):
    analysis = Usage()
    statistics = analysis.statistics(context)
    tokens = random_batch(5, num_documents=num_documents, num_domains=len(DOMAINS), domain_ids=domain_ids)
    for record in random_routings(tokens, 5, layers=context.layers, num_experts=E, num_experts_per_token=K):
        statistics["usage"].update(record)
    return analysis.table(statistics, context)


@pytest.fixture(scope="module")
def table():
    return table_of(context())


@pytest.fixture(scope="module")
def frames(table):
    return Usage().frames(table, context())


def test_columns_and_rows_of_the_usage_file(frames, table):
    frame = frames["usage"]
    assert list(frame.columns) == [
        "layer",
        "domain",
        "expert",
        "num_tokens",
        "num_documents",
        "num_selected",
        "selection_frequency",
        "ci_low",
        "ci_high",
        "lift",
        "lift_ci_low",
        "lift_ci_high",
        "effective_documents",
        "lift_logit_se",
        "lift_degrees_of_freedom",
        "lift_p_value",
    ]
    assert len(frame) == len(LAYERS) * (1 + len(DOMAINS)) * E
    assert not frame.duplicated(["layer", "domain", "expert"]).any()
    assert frame[["layer", "expert", "num_tokens", "num_documents", "num_selected"]].dtypes.unique().tolist() == [
        np.dtype("int64")
    ]
    indexed = frame.set_index(["layer", "domain", "expert"])
    for layer in LAYERS:
        for domain in DOMAINS:
            at, row = table.sel(layer=layer, domain=domain, expert=5), indexed.loc[(layer, domain, 5)]
            assert row["selection_frequency"] == at["domain_specialization"].item()
            assert row["ci_low"] == at["domain_specialization_ci_low"].item()
            assert row["lift_ci_high"] == at["lift_ci_high"].item()
            assert row["num_documents"] == at["num_documents"].item()
        row = indexed.loc[(layer, "all", 5)]
        assert row["selection_frequency"] == table["selection_frequency"].sel(layer=layer, expert=5).item()
        assert row["num_selected"] == indexed.loc[[(layer, domain, 5) for domain in DOMAINS], "num_selected"].sum()
    assert frame.loc[frame["domain"] == "all", ["lift", "lift_ci_low", "lift_ci_high"]].isna().all(axis=None)
    np.testing.assert_allclose(frame.groupby(["layer", "domain"])["selection_frequency"].sum(), K)
    np.testing.assert_allclose(frame["num_selected"] / frame["num_tokens"], frame["selection_frequency"])
    assert (frame["ci_low"] <= frame["selection_frequency"]).all()
    assert (frame["selection_frequency"] <= frame["ci_high"]).all()


def test_other_frames(frames):
    assert len(frames["usage_load"]) == len(LAYERS) * (1 + len(DOMAINS))
    assert frames["usage_load"].notna().all(axis=None)
    assert len(frames["usage_divergence"]) == len(LAYERS) * E
    assert len(frames["usage_information"]) == len(LAYERS)
    information = frames["usage_information"]
    np.testing.assert_allclose(
        information["mutual_information_share"], information["mutual_information"] / information["domain_entropy"]
    )
    for name, frame in (("mutual_information", information), ("divergence", frames["usage_divergence"])):
        np.testing.assert_allclose(frame[f"{name}_excess"], frame[name] - frame[f"{name}_null_mean"])


def test_specialists_are_selected_on_one_half_and_measured_on_the_other(frames, table):
    frame = frames["specialists"]
    assert len(frame) == len(LAYERS) * len(DOMAINS)
    assert frame["rank"].tolist() == list(range(len(frame)))
    assert frame["selection_half_lift_ci_low"].is_monotonic_decreasing
    for row in frame.itertuples():
        at = table.sel(layer=row.layer, domain=row.domain)
        often_E = at["selection_half_domain_specialization"].values >= K / E
        assert often_E[row.expert]
        assert (
            at["selection_half_lift_ci_low"].values[row.expert]
            == at["selection_half_lift_ci_low"].values[often_E].max()
        )
        measured = at.isel(expert=row.expert)
        assert row.domain_specialization == measured["evaluation_half_domain_specialization"].item()
        assert row.lift_ci_low == measured["evaluation_half_lift_ci_low"].item()
        assert row.num_documents == measured["evaluation_half_num_documents"].item()
        assert row.domain_specialization != row.selection_half_domain_specialization
    total = table["selection_half_num_documents"] + table["evaluation_half_num_documents"]
    assert np.array_equal(total, table["num_documents"])


def test_selecting_and_measuring_on_different_halves_removes_the_selection_bias():
    """Routing independent of domains: the selected lift is high, the measured one about 1."""
    selected, measured = [], []
    for seed in range(6):
        analysis, at = Usage(), context()
        statistics = analysis.statistics(at)
        tokens = random_batch(100 + seed, num_documents=80, num_domains=len(DOMAINS))
        for record in random_routings(
            tokens, seed, layers=LAYERS, num_experts=E, specialization=0.0, document_effect=0.7
        ):
            statistics["usage"].update(record)
        frame = analysis.frames(analysis.table(statistics, at), at)["specialists"]
        selected += frame["selection_half_lift"].tolist()
        measured += frame["lift"].tolist()
    assert np.mean(selected) > 1.1
    error = np.std(measured) / np.sqrt(len(measured) / 3)  # domains of a layer are not independent
    assert abs(np.mean(measured) - 1) < 3 * error


@pytest.mark.parametrize(
    ("layers", "groups", "num_documents", "domain_ids"),
    [
        (LAYERS, None, 90, None),
        ((1,), {"law": "x"}, 90, None),  # one layer
        (LAYERS, None, 6, None),  # no interval anywhere
        (LAYERS, None, 30, [0, 1] * 15),  # a domain without tokens
    ],
)
def test_every_figure_draws(layers, groups, num_documents, domain_ids, tmp_path, recwarn):
    at = context(layers, groups)
    lengths = {} if domain_ids is None else {"domain_ids": domain_ids}
    table = table_of(at, num_documents, **lengths)
    names = []
    for name, draw in Usage().figures(table, at):
        names.append(name)
        figure = draw()
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        if name == "usage_load":
            for measure in ("max_violation", "normalized_usage_entropy"):
                assert undrawn(figure, table[f"{measure}_all"]) == []
        elif name == "usage_specialization":
            assert undrawn(figure, 100 * table["domain_specialization"]) == []
        width = figure.get_size_inches()[0]
        assert width in (3.3, 6.8)
        assert any("toy · 1,234 tokens · shelf" in text.get_text() for text in figure.texts)
    assert len(names) == len(set(names)) == 6
    assert all(name.startswith("usage") for name in names)
    assert not [warning for warning in recwarn if issubclass(warning.category, (RuntimeWarning, UserWarning))]


def test_drawing_and_rows_leave_the_table_as_it_was(table):
    before, at = table.copy(deep=True), context()
    Usage().frames(table, at)
    for _, draw in Usage().figures(table, at):
        draw()
    assert table.identical(before)


def test_the_table_says_how_logits_become_probabilities(table):
    assert table.attrs["scoring"] == "softmax"


def test_frames_of_known_counts_have_empty_intervals():
    counts_LDE = np.array([[[5, 3, 2, 0], [2, 3, 4, 1]]])
    statistic = ExpertUsage.from_counts(
        counts_LDE * 2, [10, 10], num_experts_per_token=2, layers=[7], domains=["law", "code"]
    )
    frame = Usage().frames(statistic.compute(), context())["usage"]
    assert isinstance(frame, pd.DataFrame)
    assert frame[["ci_low", "ci_high", "lift_ci_low", "lift_ci_high"]].isna().all(axis=None)
    assert (frame["num_documents"] == 0).all()
