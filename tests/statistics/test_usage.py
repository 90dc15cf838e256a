"""Usage and specialization against plain loops, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from moescope.errors import UsageError
from moescope.measures import resampling
from moescope.measures import usage as measures
from moescope.statistics.usage import ExpertUsage
from tests.records import batch_of_documents, random_batch, random_routings

LAYERS = [2, 3]
DOMAINS = ["law", "code", "prose"]
E, K, D = 8, 3, 3


def usage(**changes) -> ExpertUsage:
    parameters = {"layers": LAYERS, "num_experts": E, "num_experts_per_token": K, "domains": DOMAINS, "seed": 4}
    return ExpertUsage(**{**parameters, **changes})


def routings(tokens, seed=0, **changes):
    return random_routings(tokens, seed, layers=LAYERS, num_experts=E, num_experts_per_token=K, **changes)


@pytest.fixture(scope="module")
def batches():
    return [random_batch(seed, num_documents=25, num_domains=D, shuffle=seed == 1) for seed in (0, 1, 2)]


@pytest.fixture(scope="module")
def records(batches):
    return [record for seed, tokens in enumerate(batches) for record in routings(tokens, seed)]


@pytest.fixture(scope="module")
def statistic(records):
    statistic = usage()
    for record in records:
        statistic.update(record)
    return statistic


@pytest.fixture(scope="module")
def table(statistic):
    return statistic.compute()


@pytest.fixture(scope="module")
def documents(records):
    """Per layer a list of (hash, domain, tokens, counts_E, probabilities_E), by a plain loop over tokens."""
    found = {layer: {} for layer in LAYERS}
    for record in records:
        probabilities_TE = torch.softmax(record.logits_TE.double(), dim=-1).numpy()
        for token in range(record.tokens.num_tokens):
            row = int(record.tokens.rows_T[token])
            name = int(record.tokens.document_hashes_B[row])
            entry = found[record.layer].setdefault(
                name, [int(record.tokens.domain_ids_B[row]), 0, np.zeros(E, dtype=int), np.zeros(E)]
            )
            entry[1] += 1
            entry[2][record.expert_ids_TK[token].numpy()] += 1
            entry[3] += probabilities_TE[token]
    return {layer: [(name, *entry) for name, entry in entries.items()] for layer, entries in found.items()}


def counts_of(documents, weights=None, labels=None):
    counts_DE, tokens_D = np.zeros((D, E), dtype=int), np.zeros(D, dtype=int)
    for index, (_, domain, tokens, counts_E, _) in enumerate(documents):
        weight = 1 if weights is None else weights[index]
        counts_DE[domain if labels is None else labels[index]] += weight * counts_E
        tokens_D[domain if labels is None else labels[index]] += weight * tokens
    return counts_DE, tokens_D


def test_counts_equal_a_plain_loop(table, documents):
    for layer in LAYERS:
        counts_DE, tokens_D = counts_of(documents[layer])
        at = table.sel(layer=layer)
        assert np.array_equal(at["num_selected"], counts_DE)
        assert np.array_equal(at["num_tokens"], tokens_D)
        assert np.array_equal(at["num_selected_all"], counts_DE.sum(axis=0))
        assert at["num_tokens_all"] == tokens_D.sum()
        domains = [domain for _, domain, *_ in documents[layer]]
        assert np.array_equal(at["num_documents"], np.bincount(domains, minlength=D))
        np.testing.assert_allclose(at["domain_specialization"], counts_DE / tokens_D[:, None], rtol=1e-12)
        np.testing.assert_allclose(at["selection_frequency"], counts_DE.sum(0) / tokens_D.sum(), rtol=1e-12)
        specialization_DE = counts_DE / tokens_D[:, None]
        np.testing.assert_allclose(at["lift"], specialization_DE / specialization_DE.mean(axis=0), rtol=1e-12)


def test_halves_are_of_documents_and_add_up(table, documents):
    for layer in LAYERS:
        for half, prefix in enumerate(("selection_half", "evaluation_half")):
            part = [entry for entry in documents[layer] if resampling.halves(np.array([entry[0]]), seed=4)[0] == half]
            counts_DE, tokens_D = counts_of(part)
            at = table.sel(layer=layer)
            assert np.array_equal(at[f"{prefix}_num_tokens"], tokens_D)
            assert int(at[f"{prefix}_num_documents"].sum()) == len(part)
            np.testing.assert_allclose(at[f"{prefix}_domain_specialization"], counts_DE / tokens_D[:, None], rtol=1e-12)


def test_the_score_that_chooses_is_of_half_0_alone(table, documents):
    for layer in LAYERS:
        chosen = [entry for entry in documents[layer] if resampling.halves(np.array([entry[0]]), seed=4)[0] == 0]
        weights_BR = resampling.poisson_weights(np.array([entry[0] for entry in chosen]), 400, seed=4)
        lift_RDE = []
        for replicate in range(400):
            counts_DE, tokens_D = counts_of(chosen, weights=weights_BR[:, replicate])
            specialization_DE = counts_DE / tokens_D[:, None]
            lift_RDE.append(specialization_DE / specialization_DE.mean(axis=0))
        expected_DE = np.quantile(lift_RDE, 0.025, axis=0, method="weibull")
        np.testing.assert_allclose(table["selection_half_lift_ci_low"].sel(layer=layer), expected_DE, rtol=1e-12)


@pytest.mark.parametrize("prefix", ["", "evaluation_half_"])
def test_intervals_are_percentiles_over_weighted_documents(table, documents, prefix):
    for layer in LAYERS:
        chosen = documents[layer]
        if prefix:
            chosen = [entry for entry in chosen if resampling.halves(np.array([entry[0]]), seed=4)[0] == 1]
        weights_BR = resampling.poisson_weights(np.array([entry[0] for entry in chosen]), 400, seed=4)
        specialization_RDE, lift_RDE, frequency_RE = [], [], []
        for replicate in range(400):
            counts_DE, tokens_D = counts_of(chosen, weights=weights_BR[:, replicate])
            specialization_RDE.append(counts_DE / tokens_D[:, None])
            lift_RDE.append(specialization_RDE[-1] / specialization_RDE[-1].mean(axis=0))
            frequency_RE.append(counts_DE.sum(axis=0) / tokens_D.sum())
        at = table.sel(layer=layer)
        enough_D = at[f"{prefix}num_documents"].values >= 10
        assert enough_D.any()
        for name, replicates in (("domain_specialization", specialization_RDE), ("lift", lift_RDE)):
            for ending, quantile in (("low", 0.025), ("high", 0.975)):
                expected_DE = np.quantile(replicates, quantile, axis=0, method="weibull")
                computed_DE = at[f"{prefix}{name}_ci_{ending}"].values
                np.testing.assert_allclose(computed_DE[enough_D], expected_DE[enough_D], rtol=1e-12)
                assert np.isnan(computed_DE[~enough_D]).all()
        expected_E = np.quantile(frequency_RE, 0.975, axis=0, method="weibull")
        np.testing.assert_allclose(at[f"{prefix}selection_frequency_ci_high"], expected_E, rtol=1e-12)


def test_nulls_are_of_relabeled_documents(table, documents):
    for layer in LAYERS:
        hashes_B = np.array([entry[0] for entry in documents[layer]])
        labels_BR = resampling.null_labels(hashes_B, 200, [1, 1, 1], seed=4)
        divergences_RE, informations_R, shares_R = [], [], []
        for replicate in range(200):
            counts_DE, tokens_D = counts_of(documents[layer], labels=labels_BR[:, replicate])
            divergences_RE.append([jensenshannon(counts_DE[:, e], tokens_D, base=2) ** 2 for e in range(E)])
            informations_R.append(information_of(counts_DE))
            shares_R.append(informations_R[-1] / entropy(tokens_D, base=2))
        at = table.sel(layer=layer)
        for name, replicates in (
            ("divergence", divergences_RE),
            ("mutual_information", informations_R),
            ("mutual_information_share", shares_R),
        ):
            np.testing.assert_allclose(at[f"{name}_null_mean"], np.mean(replicates, axis=0), rtol=1e-9, atol=1e-12)
            for ending, quantile in (("low", 0.025), ("high", 0.975)):
                expected = np.quantile(replicates, quantile, axis=0, method="weibull")
                np.testing.assert_allclose(at[f"{name}_null_{ending}"], expected, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(at[f"{name}_excess"], at[name] - at[f"{name}_null_mean"])


def information_of(counts_DE) -> float:
    """scikit-learn's, of a contingency table, in bits."""
    return mutual_info_score(None, None, contingency=np.asarray(counts_DE, dtype=float)) / np.log(2)


def test_divergence_and_information_equal_scipy_and_scikit_learn(table, documents):
    for layer in LAYERS:
        counts_DE, tokens_D = counts_of(documents[layer])
        expected_E = [jensenshannon(counts_DE[:, e], tokens_D, base=2) ** 2 for e in range(E)]
        at = table.sel(layer=layer)
        np.testing.assert_allclose(at["divergence"], expected_E, rtol=1e-9)
        assert float(at["mutual_information"]) == pytest.approx(information_of(counts_DE), rel=1e-9)
        share = information_of(counts_DE) / entropy(tokens_D, base=2)
        assert float(at["mutual_information_share"]) == pytest.approx(share, rel=1e-9)


def test_load_equals_the_definitions(table, documents):
    for layer in LAYERS:
        counts_DE, tokens_D = counts_of(documents[layer])
        sums_DE = np.zeros((D, E))
        for _, domain, _, _, probabilities_E in documents[layer]:
            sums_DE[domain] += probabilities_E
        at = table.sel(layer=layer)
        cases = [("", at.sel(domain=name), counts_DE[d], tokens_D[d], sums_DE[d]) for d, name in enumerate(DOMAINS)]
        cases.append(("_all", at, counts_DE.sum(0), tokens_D.sum(), sums_DE.sum(0)))
        for suffix, found, counts_E, tokens, sums_E in cases:
            pairs = np.abs(counts_E[:, None] - counts_E[None, :]).sum()
            expected = {
                "normalized_usage_entropy": entropy(counts_E) / np.log(E),
                "coefficient_of_variation": np.std(counts_E) / np.mean(counts_E),
                "gini": pairs / (2 * E * counts_E.sum()),
                "max_violation": counts_E.max() / counts_E.mean() - 1,
                "num_unused_experts": np.sum(counts_E == 0),
            }
            for name, value in expected.items():
                assert float(found[name + suffix]) == pytest.approx(value, rel=1e-12), name
            # the records' probabilities are float32
            loss = E * np.sum(counts_E / tokens * sums_E / tokens)
            assert float(found["auxiliary_loss" + suffix]) == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(at["mean_probability"], sums_DE.sum(0) / tokens_D.sum(), rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_rows_of_specialization_sum_to_k(data):
    num_experts = data.draw(st.integers(1, 12))
    num_experts_per_token = data.draw(st.integers(1, num_experts))
    num_domains = data.draw(st.integers(1, 5))
    tokens = random_batch(data.draw(st.integers(0, 10**6)), num_documents=15, num_domains=num_domains)
    statistic = ExpertUsage(
        layers=[0],
        num_experts=num_experts,
        num_experts_per_token=num_experts_per_token,
        domains=[str(domain) for domain in range(num_domains)],
        num_bootstrap=20,
        num_null=20,
    )
    (record,) = random_routings(
        tokens, 0, layers=[0], num_experts=num_experts, num_experts_per_token=num_experts_per_token
    )
    statistic.update(record)
    table = statistic.compute()
    sums_D = table["domain_specialization"].sum("expert", skipna=False).values.ravel()
    present_D = table["num_tokens"].values.ravel() > 0
    np.testing.assert_allclose(sums_D[present_D], num_experts_per_token, rtol=1e-12)
    assert np.isnan(sums_D[~present_D]).all()
    assert float(table["selection_frequency"].sum()) == pytest.approx(num_experts_per_token)
    used = table["lift"].mean("domain")  # over domains with tokens, lifts average 1
    np.testing.assert_allclose(used.values[~np.isnan(used.values)], 1.0)
    table = table.isel(layer=0)
    assert -1e-12 <= float(table["mutual_information"]) <= float(table["domain_entropy"]) + 1e-12
    if num_experts_per_token == num_experts:  # every token has every expert: nothing can depend on domains
        assert abs(float(table["mutual_information"])) < 1e-12
        np.testing.assert_allclose(table["auxiliary_loss_all"], num_experts_per_token, rtol=1e-6)


@given(arrays.arrays(np.int64, (4, 6), elements=st.integers(0, 50)))
def test_measures_stay_within_their_bounds(counts_DE):
    counts_E = counts_DE.sum(axis=0)
    if counts_E.sum() == 0:
        for measure in (measures.gini, measures.max_violation, measures.coefficient_of_variation):
            assert np.isnan(measure(counts_E))
        return
    assert -1e-12 <= measures.normalized_usage_entropy(counts_E) <= 1 + 1e-12
    assert -1e-12 <= measures.gini(counts_E) <= 5 / 6 + 1e-12
    assert -1e-12 <= measures.max_violation(counts_E) <= 5
    divergence_E = measures.divergence(counts_DE, counts_DE.sum(axis=1))
    assert np.array_equal(np.isnan(divergence_E), counts_E == 0)
    assert (divergence_E[counts_E > 0] >= -1e-12).all()
    assert (divergence_E[counts_E > 0] <= 1 + 1e-12).all()
    limit = min(entropy(counts_E, base=2), entropy(counts_DE.sum(axis=1), base=2))
    assert -1e-12 <= measures.mutual_information(counts_DE) <= limit + 1e-9
    # a factor shared by all counts changes none of them
    np.testing.assert_allclose(measures.gini(3 * counts_E), measures.gini(counts_E))
    np.testing.assert_allclose(measures.divergence(3 * counts_DE, counts_DE.sum(axis=1)), divergence_E, atol=1e-12)


def test_extremes_of_load():
    even_E, one_E = np.full(8, 5), np.eye(8, dtype=int)[3] * 40
    assert measures.normalized_usage_entropy(even_E) == pytest.approx(1)
    assert measures.normalized_usage_entropy(one_E) == pytest.approx(0)
    assert measures.gini(even_E) == 0
    assert measures.gini(one_E) == pytest.approx(7 / 8)
    assert measures.max_violation(even_E) == 0
    assert measures.max_violation(one_E) == 7
    assert measures.coefficient_of_variation(one_E) == pytest.approx(np.sqrt(7))


def test_a_replicate_without_an_answer_is_left_out():
    replicates = np.array([[np.nan, 1.0], [2.0, 2.0], [4.0, np.nan], [3.0, 3.0]] * 30)
    low, high = measures.replicate_range(replicates)
    for column in range(2):
        known = replicates[~np.isnan(replicates[:, column]), column]
        assert low[column] == np.quantile(known, 0.025, method="weibull")
        assert high[column] == np.quantile(known, 0.975, method="weibull")
    assert measures.replicate_mean(replicates) == pytest.approx([3.0, 2.0])
    nothing = measures.replicate_range(np.full((5, 2), np.nan))
    assert np.isnan(nothing).all()


def test_under_ten_documents_there_is_no_interval_and_it_is_said():
    tokens = random_batch(3, lengths=[9] * 24, domain_ids=[0] * 9 + [1] * 15)
    statistic = usage()
    for record in routings(tokens):
        statistic.update(record)
    table = statistic.compute()
    assert table["domain_specialization_ci_low"].sel(domain="law").isnull().all()
    assert table["lift_ci_high"].sel(domain="law").isnull().all()
    assert table["domain_specialization_ci_low"].sel(domain="code").notnull().all()
    assert table["domain_specialization"].sel(domain="prose").isnull().all()  # no token at all
    assert table["selection_frequency_ci_low"].notnull().all()  # 24 documents together
    assert "law, prose" in table.attrs["note"]
    assert "code" not in table.attrs["note"]


def test_documents_without_tokens_are_not_documents():
    tokens = random_batch(3, lengths=[9, 0, 5], domain_ids=[0, 1, 1])
    statistic = usage()
    for record in routings(tokens):
        statistic.update(record)
    assert statistic.compute()["num_documents"].values.tolist() == [[1, 1, 0]] * 2


def test_a_later_batch_is_not_taken_for_an_earlier_one(batches):
    # draws are kept for the batch at hand; each batch here is a new object, perhaps at the address of the last
    whole, parts = usage(), usage()
    for record in routings(batches[0], 1, logits=True):
        whole.update(record)
        for row in range(batches[0].num_documents):
            part, keep_T = batch_of_documents(batches[0], [row])
            for name in ("expert_ids_TK", "weights_TK", "logits_TE"):
                assert getattr(record, name) is not None
            parts.update(
                type(record)(
                    tokens=part,
                    layer=record.layer,
                    expert_ids_TK=record.expert_ids_TK[keep_T],
                    weights_TK=record.weights_TK[keep_T],
                    num_experts=E,
                    logits_TE=record.logits_TE[keep_T],
                )
            )
    for name, tensor in whole.state.items():
        np.testing.assert_allclose(parts.state[name].numpy(), tensor.numpy(), rtol=1e-12, atol=1e-12, err_msg=name)


def test_known_counts_without_documents():
    counts_LDE = np.array([[[5, 3, 2, 0], [2, 3, 4, 1]]])
    statistic = ExpertUsage.from_counts(
        counts_LDE, [5, 5], num_experts_per_token=2, layers=[7], domains=["law", "code"]
    )
    table = statistic.compute().sel(layer=7)
    assert table["domain_specialization"].values == pytest.approx(counts_LDE[0] / 5)
    assert table["lift"].sel(domain="law", expert=0) == pytest.approx(1.0 / 0.7)
    assert table["divergence"].values[1] == 0  # 3 of 5 tokens in both domains
    assert np.isnan(table["auxiliary_loss"].values).all()
    for name in table.data_vars:
        if str(name).endswith(("_low", "_high", "_mean", "_excess")):
            assert table[name].isnull().all(), name
    assert "without documents" in table.attrs["note"]
    with pytest.raises(UsageError, match="cannot merge"):  # they have no replicates
        statistic.merge(
            ExpertUsage(layers=[7], num_experts=4, num_experts_per_token=2, domains=["law", "code"], seed=0)
        )


@pytest.mark.parametrize(
    ("counts", "tokens", "words"),
    [
        ([[[3, 3, 1, 1], [2, 2, 2, 2]]], [4, 5], "add up to 8"),
        ([[[3, 3, 1, 1], [2, 2, 2, 2]]], [4], "shape"),
        ([[3, 3, 1, 1], [2, 2, 2, 2]], [4, 4], "shape"),
        ([[[3, 6, 0, -1], [2, 2, 2, 2]]], [4, 4], "negative"),
        ([[[3.5, 2.5, 1, 1], [2, 2, 2, 2]]], [4, 4], "add up|whole"),
        ([[[5, 1, 1, 1], [2, 2, 2, 2]]], [4, 4], "more often"),
    ],
)
def test_counts_that_cannot_be_are_refused(counts, tokens, words):
    with pytest.raises(UsageError, match=words):
        ExpertUsage.from_counts(counts, tokens, num_experts_per_token=2, layers=[7], domains=["law", "code"])


def test_bad_parameters_are_refused():
    with pytest.raises(UsageError, match="`domains` is empty"):
        usage(domains=[])
    with pytest.raises(UsageError, match="domain_shares"):
        usage(domain_shares=[1.0, 2.0])
    with pytest.raises(UsageError, match="domain_shares"):
        usage(domain_shares=[1.0, 2.0, 0.0])


def test_size_of_the_state():
    statistic = ExpertUsage(
        layers=list(range(16)),
        num_experts=64,
        num_experts_per_token=8,
        domains=[str(domain) for domain in range(22)],
    )
    replicates = 4 * 16 * 22 * 64 * (2 * 400 + 200)
    assert replicates < statistic.nbytes() < 1.05 * replicates < 100e6


def test_where_domains_matter_the_excess_says_so(table):
    assert (table["mutual_information"] > table["mutual_information_null_high"]).all()
    assert float((table["divergence"] > table["divergence_null_high"]).mean()) > 0.5
