"""The probe of a token's label: against scikit-learn's own fits and the analytic information."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from moescope.measures.probe import PENALTIES, Probe

E, K = 8, 2


def planted(seed: int, num_tokens: int, strength: float = 1.5, num_labels: int = 3):
    """K-hot vectors that depend on the label, and the label; each label has its own preferences."""
    generator = np.random.default_rng(seed)
    labels_N = generator.choice(
        num_labels, num_tokens, p=np.arange(1, num_labels + 1) / (num_labels * (num_labels + 1) / 2)
    )
    preference_DE = strength * np.random.default_rng(7).normal(size=(num_labels, E))
    selected_NK = (preference_DE[labels_N] + generator.gumbel(size=(num_tokens, E))).argsort(axis=1)[:, -K:]
    features_NE = np.zeros((num_tokens, E), dtype=np.float32)
    np.put_along_axis(features_NE, selected_NK, 1.0, axis=1)
    return features_NE, labels_N


def fitted(features_NE, labels_N, penalty, tol=1e-3) -> LogisticRegression:
    max_iter = 100 if tol == 1e-3 else 10_000
    return LogisticRegression(C=1 / (penalty * len(labels_N)), tol=tol, max_iter=max_iter).fit(features_NE, labels_N)


def test_it_is_scikit_learns_fit_at_the_penalty_of_lowest_held_out_loss():
    features_NE, labels_N = planted(1, 600)
    validation_N = np.arange(600) % 4 == 0
    probe = Probe(features_NE, labels_N, 3, validation_N)
    losses = []
    for penalty in PENALTIES:
        model = fitted(features_NE[~validation_N], labels_N[~validation_N], penalty)
        log_ND = model.predict_log_proba(features_NE[validation_N])
        losses.append(-np.mean([row[label] for row, label in zip(log_ND, labels_N[validation_N], strict=True)]))
    # The first that is lower than the next; penalties after it are not tried.
    first = next((i for i in range(len(losses) - 1) if losses[i + 1] >= losses[i]), len(losses) - 1)
    assert probe.penalty == PENALTIES[first]
    fresh_NE = planted(2, 100)[0]
    exact = fitted(features_NE.astype(np.float64), labels_N, probe.penalty, tol=1e-10)
    np.testing.assert_allclose(
        np.exp(probe.log_probabilities(fresh_NE)), exact.predict_proba(fresh_NE.astype(np.float64)), atol=0.02
    )


def test_noise_gets_the_strongest_penalty():
    features_NE, labels_N = planted(3, 400, strength=0.0)
    probe = Probe(features_NE, labels_N, 3, np.arange(400) % 4 == 0)
    assert probe.penalty == max(PENALTIES)


@pytest.mark.parametrize("absent", [(), (1,), (0, 3), (0, 2, 3), (0, 1, 3)])
def test_probabilities_add_up_whatever_labels_are_absent(absent):
    features_NE, labels_N = planted(4, 500, num_labels=4)
    present = ~np.isin(labels_N, absent)
    probe = Probe(features_NE[present], labels_N[present], 4, np.arange(present.sum()) % 4 == 0)
    log_ND = probe.log_probabilities(features_NE)
    assert log_ND.shape == (500, 4) and np.isfinite(log_ND).all()
    np.testing.assert_allclose(np.exp(log_ND).sum(axis=1), 1, rtol=1e-5)
    known = [label for label in range(4) if label not in absent]
    for label in absent:
        # Half the probability of the rarest other.
        np.testing.assert_allclose(log_ND[:, label], log_ND[:, known].min(axis=1) - np.log(2), rtol=1e-5)
    if len(known) > 1:
        right = log_ND[present][:, known].argmax(axis=1) == np.searchsorted(known, labels_N[present])
        assert right.mean() > max(np.bincount(labels_N[present])) / present.sum()


def test_information_of_one_selected_expert_is_the_analytic_one():
    generator = np.random.default_rng(5)
    share_D = np.array([0.5, 0.3, 0.2])
    given_DE = np.random.default_rng(6).dirichlet(np.full(E, 0.7), 3)
    joint_DE = share_D[:, None] * given_DE
    independent_DE = share_D[:, None] * joint_DE.sum(axis=0)
    analytic = float((joint_DE * np.log2(joint_DE / independent_DE)).sum())

    def drawn(num_tokens):
        labels_N = generator.choice(3, num_tokens, p=share_D)
        experts_N = (generator.random((num_tokens, 1)) > given_DE.cumsum(axis=1)[labels_N]).sum(axis=1)
        return np.eye(E, dtype=np.float32)[np.minimum(experts_N, E - 1)], labels_N

    features_NE, labels_N = drawn(8000)
    probe = Probe(features_NE, labels_N, 3, np.arange(8000) % 5 == 0)
    fresh_NE, fresh_N = drawn(20_000)
    log_ND = probe.log_probabilities(fresh_NE) / np.log(2)
    entropy = -float((share_D * np.log2(share_D)).sum())
    cross_entropy = -float(log_ND[np.arange(20_000), fresh_N].mean())
    assert analytic > 0.3
    # 20,000 scores with a spread of about 1 bit: 0.007; the estimate is a lower bound, by the penalty and the fit.
    assert entropy - cross_entropy == pytest.approx(analytic, abs=0.03)
