"""How much the set of selected experts tells about a token's label: a regularized linear probe, judged held out.

The mutual information of one selected expert and the label leaves out what the K experts tell together. A multinomial
logistic regression from the K-hot vector of the set to the label gives a lower bound of the set's:
`I(S; D) >= H(D) - CE`, with CE the cross-entropy on documents that the probe was not fitted on.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5)
"""L2 penalties tried, per token: `penalty / 2 ‖W‖²` is added to the mean cross-entropy."""
MAX_STEPS = 40
"""Steps of a fit; more change the information by less than a hundredth of a bit."""
NUM_INNER = 8_000
"""Tokens that the penalty is chosen on; the final fit takes all it is given."""


class Probe:
    """A multinomial logistic regression from K-hot vectors to labels, fitted by scikit-learn's L-BFGS.

    The penalty is the one of `PENALTIES` with the lowest cross-entropy on the tokens of `validation_N` when fitted on
    the others; then all tokens are fitted.

    Args:
        features_NE: K-hot vectors.
        labels_N: Label of each token, 0..num_labels - 1.
        num_labels: Labels there are; those that no token has get the probability of the rarest other, halved.
        validation_N: Tokens of the documents that choose the penalty.
        penalty: One that was chosen on another layer of the same tokens; None: it is chosen.
    """

    def __init__(
        self,
        features_NE: NDArray[np.float32],
        labels_N: Ints,
        num_labels: int,
        validation_N: NDArray[np.bool_],
        *,
        penalty: float | None = None,
    ) -> None:
        self.num_labels = num_labels
        self.penalty = PENALTIES[0] if penalty is None else penalty
        if penalty is None:
            self._choose_penalty(features_NE, labels_N, validation_N)
        self._fit(features_NE, labels_N, self.penalty)

    def _choose_penalty(
        self, features_NE: NDArray[np.float32], labels_N: Ints, validation_N: NDArray[np.bool_]
    ) -> None:
        inner, outer = np.flatnonzero(~validation_N), np.flatnonzero(validation_N)
        inner = inner[:: max(1, len(inner) // NUM_INNER)]
        lowest = np.inf
        for penalty in PENALTIES if len(np.unique(labels_N[inner])) > 1 and len(outer) else ():
            self._fit(features_NE[inner], labels_N[inner], penalty)
            log_ND = self.log_probabilities(features_NE[outer])
            loss = -float(log_ND[np.arange(len(outer)), labels_N[outer]].mean())
            if loss >= lowest:
                break
            self.penalty, lowest = penalty, loss

    def _fit(self, features_NE: NDArray[np.float32], labels_N: Ints, penalty: float) -> None:
        from sklearn.dummy import DummyClassifier
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        self._model: LogisticRegression | Any
        if len(np.unique(labels_N)) == 1:  # nothing to regress on
            self._model = DummyClassifier(strategy="prior").fit(features_NE, labels_N)
            return
        model = LogisticRegression(C=1 / (penalty * len(labels_N)), tol=1e-3, max_iter=MAX_STEPS)
        with warnings.catch_warnings():
            # A probe that has not converged is judged on held-out documents all the same.
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._model = model.fit(features_NE, labels_N)

    def log_probabilities(self, features_NE: NDArray[np.float32]) -> Floats:
        """Log probability of each label for each token, nats, (N, num_labels)."""
        known_NC = np.asarray(self._model.predict_log_proba(features_NE), dtype=np.float64)
        if known_NC.shape[1] == self.num_labels:
            return known_NC
        every_ND = np.full((len(features_NE), self.num_labels), -np.inf)
        every_ND[:, self._model.classes_] = known_NC
        lowest_N1 = known_NC.min(axis=1, keepdims=True) - np.log(2)
        every_ND = np.where(np.isinf(every_ND), lowest_N1, every_ND)
        normalized_ND: Floats = every_ND - np.log(np.exp(every_ND).sum(axis=1, keepdims=True))
        return normalized_ND
