"""Dependence on the token type on held-out documents, on routers made by hand."""

import numpy as np
import pytest
from scipy.stats import binom

from moescope.analyses.vocabulary.dependence import DIFFERENCE, READINGS, dependence, dependence_frame
from moescope.measures.association import learned_scores
from tests.analyses.random_routers import (
    LAYERS,
    NUM_EXPERTS,
    NUM_SELECTED,
    VOCAB_SIZE,
    per_document,
    per_domain,
    per_token,
    per_type,
    routed,
)


def test_it_is_the_weighted_dependence_of_type_and_selection_by_loops():
    sample = routed(1, per_type)
    table = dependence(sample)
    known_N = sample.next_token_ids_N >= 0  # both readings on the same tokens
    assert 0 < known_N.sum() < sample.num_tokens
    judge = sample.halves_N[known_N] == 1
    for reading, ids_N in (("input", sample.token_ids_N[known_N]), ("next", sample.next_token_ids_N[known_N])):
        for layer in LAYERS[:2]:
            experts_NK = sample.expert_ids_NK(layer)[known_N]
            scores_XE = learned_scores(ids_N[~judge], experts_NK[~judge], VOCAB_SIZE, NUM_EXPERTS)
            expected = 0.0
            for x in range(VOCAB_SIZE):
                for e in range(NUM_EXPERTS):
                    selected_N = (experts_NK[judge] == e).sum(axis=1) / NUM_SELECTED
                    is_x_N = ids_N[judge] == x
                    expected += (np.mean(is_x_N * selected_N) - is_x_N.mean() * selected_N.mean()) * scores_XE[x, e]
            found = table["dependence"].sel(layer=layer, reading=reading)
            assert float(found) == pytest.approx(expected, abs=1e-12)


def test_a_router_of_types_depends_on_the_input_token_more_than_on_the_next():
    table = dependence(routed(2, per_type))
    assert (table["dependence_p_value"].sel(reading="input") < 1e-4).all()
    assert (table["dependence"].sel(reading="input") > table["dependence_ci_high"].sel(reading="next")).all()
    assert table.attrs["difference_ci_low"] > 0
    difference = (table["dependence"].sel(reading="input") - table["dependence"].sel(reading="next")).mean()
    assert table.attrs["difference"] == pytest.approx(float(difference))


@pytest.mark.parametrize("router", [per_token, per_document, per_domain])
def test_p_values_of_routers_that_ignore_the_token(router):
    # A document has words and experts of its own, and the words of a document have nothing to do with its domain.
    tables = [dependence(routed(seed, router)) for seed in range(25)]
    p_values = np.concatenate([table["dependence_p_value"].sel(reading="input") for table in tables])
    assert (p_values <= 0.05).sum() <= binom.ppf(0.999, len(p_values), 0.05)
    assert (p_values <= 0.5).sum() <= binom.ppf(0.999, len(p_values), 0.5)
    excluded = sum(table.attrs["difference_ci_low"] > 0 or table.attrs["difference_ci_high"] < 0 for table in tables)
    assert excluded <= binom.ppf(0.999, len(tables), 0.05)


def test_rows_by_layer_and_reading():
    table = dependence(routed(3, per_type))
    frame = dependence_frame(table)
    assert frame[["layer", "reading"]].values.tolist() == [[layer, name] for layer in LAYERS for name in READINGS]
    for row in frame.itertuples():
        assert row.dependence == float(table["dependence"].sel(layer=row.layer, reading=row.reading))
        assert [getattr(row, name) for name in DIFFERENCE] == [table.attrs[name] for name in DIFFERENCE]
    assert frame["dependence_tied"].groupby(frame["reading"]).any().all()


def test_too_few_documents_are_not_tested():
    for sample in (routed(4, per_type, num_domains=1, per=8), routed(4, per_type, num_samples=1)):
        frame = dependence_frame(dependence(sample))
        numbers = frame.drop(columns=["layer", "reading", "dependence_tied", "difference"])
        assert len(frame) == len(LAYERS) * len(READINGS) and numbers.isna().all().all()
