"""Usage and specialization against plain loops, scipy and scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, logit
from scipy.stats import entropy, gamma
from scipy.stats import t as student
from sklearn.metrics import mutual_info_score

from moescope.errors import UsageError
from moescope.measures import intervals, permutation, resampling
from moescope.measures import usage as measures
from moescope.measures.intervals import DocumentSums
from moescope.statistics.samples.documents import documents_per_domain
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


def ratio_of(part):
    """Share of each expert, its variance and its degrees of freedom from a list of documents, by plain loops."""
    tokens = np.array([entry[2] for entry in part], dtype=float)
    counts_BE = np.array([entry[3] for entry in part], dtype=float)
    share_E = counts_BE.sum(0) / tokens.sum()
    residuals_BE = counts_BE - tokens[:, None] * share_E
    num = len(part)
    variance_E = num / (num - 1) * (residuals_BE**2).sum(0) / tokens.sum() ** 2
    effective_E = counts_BE.sum(0) ** 2 / (counts_BE**2).sum(0)
    return share_E, variance_E, np.minimum(np.maximum(effective_E - 1, 3), num - 1)


def half_of(documents, half, seed=4):
    return [entry for entry in documents if resampling.halves(np.array([entry[0]]), seed=seed)[0] == half]


def lift_ends(part):
    """Lift and its ends on the scale of the logit, and the one-sided p-value, by plain loops over domains."""
    found = [ratio_of([entry for entry in part if entry[1] == domain]) for domain in range(D)]
    ends_DE = np.empty((4, D, E))
    for domain in range(D):
        for expert in range(E):
            shares, variances, degrees = (np.array([of_domain[i][expert] for of_domain in found]) for i in range(3))
            others = shares.sum() - shares[domain]
            weights = np.full(D, 1 / others)
            weights[domain] = 1 / shares[domain]
            parts = variances * weights**2
            error, freedom = np.sqrt(parts.sum()), parts.sum() ** 2 / (parts**2 / degrees).sum()
            center = logit(shares[domain] / shares.sum())
            reach = student.ppf(0.975, freedom) * error
            ends_DE[:, domain, expert] = [
                D * expit(center),
                D * expit(center - reach),
                D * expit(center + reach),
                student.sf((center - logit(1 / D)) / error, freedom),
            ]
    return ends_DE


@pytest.mark.parametrize(("prefix", "half"), [("", None), ("selection_half_", 0), ("evaluation_half_", 1)])
def test_lifts_have_intervals_on_the_scale_of_the_logit(table, documents, prefix, half):
    for layer in LAYERS:
        part = documents[layer] if half is None else half_of(documents[layer], half)
        expected = lift_ends(part)
        at = table.sel(layer=layer)
        for name, values_DE in zip(("lift", "lift_ci_low", "lift_ci_high", "lift_p_value"), expected, strict=True):
            np.testing.assert_allclose(at[f"{prefix}{name}"], values_DE, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize(("prefix", "half"), [("", None), ("evaluation_half_", 1)])
def test_shares_have_intervals_on_the_scale_of_the_logit(table, documents, prefix, half):
    for layer in LAYERS:
        part = documents[layer] if half is None else half_of(documents[layer], half)
        at = table.sel(layer=layer)
        variance_E = np.zeros(E)
        squares_E = np.zeros(E)
        for domain in range(D):
            of_domain = [entry for entry in part if entry[1] == domain]
            share_E, own_variance_E, degrees_E = ratio_of(of_domain)
            reach_E = student.ppf(0.975, degrees_E) * np.sqrt(own_variance_E) / (share_E * (1 - share_E))
            for end, sign in (("low", -1), ("high", 1)):
                expected_E = expit(logit(share_E) + sign * reach_E)
                found_E = at[f"{prefix}domain_specialization_ci_{end}"].values[domain]
                np.testing.assert_allclose(found_E, expected_E, rtol=1e-9)
            weight = sum(entry[2] for entry in of_domain) / sum(entry[2] for entry in part)
            variance_E += weight**2 * own_variance_E
            squares_E += (weight**2 * own_variance_E) ** 2 / degrees_E
        counts_DE, tokens_D = counts_of(part)
        share_E = counts_DE.sum(0) / tokens_D.sum()
        reach_E = student.ppf(0.975, variance_E**2 / squares_E) * np.sqrt(variance_E) / (share_E * (1 - share_E))
        found_E = at[f"{prefix}selection_frequency_ci_high"].values
        np.testing.assert_allclose(found_E, expit(logit(share_E) + reach_E), rtol=1e-9)


def test_documents_of_one_length_have_the_null_of_permuted_labels():
    """Against plain loops: labels permuted over documents, with the number of each domain."""
    tokens = random_batch(5, lengths=[20] * 60, domain_ids=[0] * 10 + [1] * 20 + [2] * 30)
    statistic = usage(num_null=400)
    records = routings(tokens, document_effect=1.0)
    for record in records:
        statistic.update(record)
    table = statistic.compute()
    labels_B = tokens.domain_ids_B.numpy()
    counts_BE = np.zeros((60, E))
    for row, experts_K in zip(tokens.rows_T.tolist(), records[0].expert_ids_TK.numpy(), strict=True):
        counts_BE[row, experts_K] += 1
    generator = np.random.default_rng(1)
    information_values, divergences = [], []
    for _ in range(400):
        labels = generator.permutation(labels_B)
        counts_DE = np.stack([counts_BE[labels == domain].sum(0) for domain in range(D)])
        information_values.append(information_of(counts_DE))
        divergences.append(jensenshannon(counts_DE[:, 0], counts_DE.sum(1), base=2) ** 2)
    at = table.sel(layer=2)
    for name, expected, cell in (
        ("mutual_information", information_values, at),
        ("divergence", divergences, at.sel(expert=0)),
    ):
        error = np.std(expected) / np.sqrt(400)
        assert abs(float(cell[f"{name}_null_mean"]) - np.mean(expected)) < 5 * error
        assert float(cell[f"{name}_null_high"]) == pytest.approx(np.quantile(expected, 0.975), rel=0.1)
        assert float(cell[f"{name}_excess"]) == float(cell[name] - cell[f"{name}_null_mean"])
        assert float(cell[f"{name}_p_value"]) <= 0.05
    # A permutation that changes nothing gives what was observed.
    shares_D = measures.ratio(np.bincount(labels_B), 60)
    assert float(at["domain_entropy"]) == pytest.approx(entropy(shares_D, base=2))


def test_shared_logarithms_change_no_measure():
    counts_RDE = np.random.default_rng(2).integers(0, 40, (5, D, E))
    information_R, divergence_RE, entropy_R = permutation.measured(counts_RDE)
    np.testing.assert_allclose(information_R, measures.mutual_information(counts_RDE), rtol=1e-9)
    np.testing.assert_allclose(divergence_RE, measures.divergence(counts_RDE, counts_RDE.sum(2)), rtol=1e-9)
    np.testing.assert_allclose(entropy_R, measures.domain_entropy(counts_RDE.sum(2)), rtol=1e-9)


def test_more_documents_than_are_kept_have_a_null_of_the_right_size():
    tokens = random_batch(6, num_documents=600, max_length=30)
    nulls = []
    for num_documents in (400, 50):
        statistic = usage(num_documents=num_documents, num_null=200)
        for record in routings(tokens, specialization=0.0, document_effect=1.0):
            statistic.update(record)
        nulls.append(statistic.compute())
    for name in ("mutual_information_null_mean", "divergence_null_mean"):
        exact, sampled = (float(null[name].mean()) for null in nulls)
        assert sampled == pytest.approx(exact, rel=0.15), name
    assert nulls[0].attrs["note"] == ""
    assert "a sample of 150 documents" in nulls[1].attrs["note"]


def test_p_values_are_shares_tails_and_adjusted_for_all():
    generator = np.random.default_rng(3)
    replicates_RE = generator.gamma(4.0, size=(999, 5))
    found = permutation.p_values(np.full(5, 15.0), replicates_RE)
    np.testing.assert_allclose(found["p_value_tail"], gamma.sf(15.0, 4.0), rtol=1.5)
    assert (found["p_value"] == (1 + (replicates_RE >= 15).sum(0)) / 1000).all()
    middle = permutation.p_values(np.full(5, 6.0), replicates_RE)
    assert (middle["p_value_any"] > middle["p_value"]).all()
    np.testing.assert_allclose(middle["p_value_tail"], middle["p_value"], rtol=0.2)
    constant = permutation.p_values(np.array([1.0]), np.ones((99, 1)))  # one document in each domain
    assert constant["p_value"] == constant["p_value_tail"] == constant["p_value_any"] == 1
    unknown = permutation.p_values(np.array([np.nan, 1.0]), np.full((0, 2), np.nan))
    assert all(np.isnan(values).all() for values in unknown.values())


def test_experts_of_one_domain_alone_have_bounded_lifts():
    """Expert 0 in the first domain alone, expert 1 in no domain, others everywhere."""
    tokens = np.full((2, 1), 300)
    counts_DE = np.array([[150, 0, 150], [0, 0, 300]])
    sums = DocumentSums(counts_DE, tokens, counts_DE**2 / 30 * 1.3, counts_DE * 10, tokens**2 / 30, np.full((2, 1), 30))
    found = intervals.lifts(sums)
    assert found.lift[:, 0].tolist() == [2, 0]
    assert np.isnan(found.lift[:, 1]).all()
    assert 1 < found.low[0, 0] < found.high[0, 0] == 2
    assert found.low[1, 0] == 0 < found.high[1, 0] < 1
    assert found.p_value[0, 0] < 0.01
    assert found.p_value[1, 0] == 1
    low, high = intervals.share_interval(np.array([0.0, 1.0]), np.zeros(2), np.full(2, 9.0), np.full(2, 10.0))
    assert low.tolist() == [0, pytest.approx(0.025**0.1)]
    assert high.tolist() == [pytest.approx(1 - 0.025**0.1), 1]


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


def test_under_eight_documents_there_is_no_interval_and_it_is_said():
    tokens = random_batch(3, lengths=[9] * 22, domain_ids=[0] * 7 + [1] * 15)
    statistic = usage()
    for record in routings(tokens):
        statistic.update(record)
    table = statistic.compute()
    assert table["domain_specialization_ci_low"].sel(domain="law").isnull().all()
    assert table["lift_ci_high"].sel(domain="law").isnull().all()
    assert table["domain_specialization_ci_low"].sel(domain="code").notnull().all()
    assert table["domain_specialization"].sel(domain="prose").isnull().all()  # no token at all
    assert table["selection_frequency_ci_low"].notnull().all()  # 22 documents together
    assert table["selection_half_lift_ci_low"].sel(domain="law").notnull().any()  # what findings are selected by
    assert "law, prose" in table.attrs["note"]
    assert "code" not in table.attrs["note"]


def test_under_five_effective_documents_there_is_no_interval():
    tokens = random_batch(3, lengths=[900] + [3] * 9 + [9] * 10, domain_ids=[0] * 10 + [1] * 10)
    statistic = usage()
    for record in routings(tokens):
        statistic.update(record)
    table = statistic.compute()
    assert float(table["effective_documents"].sel(domain="law")[0]) == pytest.approx(927**2 / (900**2 + 81))
    assert table["domain_specialization_ci_low"].sel(domain="law").isnull().all()
    assert table["lift_p_value"].sel(domain="law").isnull().all()
    assert table["domain_specialization_ci_low"].sel(domain="code").notnull().all()
    assert "law" in table.attrs["note"]


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


def test_size_of_the_state():
    statistic = ExpertUsage(
        layers=list(range(16)),
        num_experts=64,
        num_experts_per_token=8,
        domains=[str(domain) for domain in range(22)],
    )
    assert 33e6 < statistic.nbytes() < 40e6
    many = documents_per_domain(60, 1000, 512), documents_per_domain(60, 22, 512), documents_per_domain(16, 22, 64)
    assert many == (4, 99, 372)
    with torch.device("meta"):  # how much it would take, without taking it
        assert usage(layers=list(range(16)), num_experts=64, domains=[str(d) for d in range(1000)]).nbytes() < 120e6


def test_where_domains_matter_the_excess_says_so(table):
    assert (table["mutual_information"] > table["mutual_information_null_high"]).all()
    assert float((table["divergence"] > table["divergence_null_high"]).mean()) > 0.5
