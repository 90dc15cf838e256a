"""Effects in profiles of experts that have a page: ablated for real on held-out documents, beside the estimate."""

from __future__ import annotations

import numpy as np
import pytest

import moescope
from moescope.analyses.profile.analysis import LINES, Profile
from moescope.analyses.profile.schema import ExpertProfile
from moescope.interventions.ablation import Ablation
from moescope.interventions.document_effects import measure_ablations, measure_first_order
from moescope.measures.resampling import halves
from moescope.run import Run
from tests.analyses.runs import small_corpus, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def run(model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    corpus = small_corpus(tmp_path_factory.mktemp("text"))
    analysis = Profile(num_pages=2, neighbors=False)
    return moescope.capture(model, corpus, [analysis], num_tokens=3000, layers=[1, 2], predictions=False)


def test_experts_with_a_page_are_measured_on_the_evaluation_half(model, run: Run) -> None:
    profiles = [ExpertProfile.model_validate_json(line) for line in dict(run.files)[LINES].splitlines()]
    best = run.frames["profile_best"].head(2)[["layer", "expert"]].values.tolist()
    measured = {(profile.layer, profile.expert): profile for profile in profiles if profile.effect.measured is not None}
    assert sorted(measured) == sorted(map(tuple, best))
    (sample,) = [kept for name, kept in run.statistics.items() if name.startswith("atlas_text")]
    every = [document for domain in range(3) for document in sample.documents(domain)]
    held_out = [d for d in every if halves(np.array([d.document_hash]), seed=0)[0]]
    tokens_G = np.array([int((document.next_token_ids >= 0).sum()) for document in held_out])
    estimates_GLE = measure_first_order(model, held_out, [1, 2]).estimates_GLE
    for (layer, expert), profile in measured.items():
        effect = profile.effect.measured
        effects_G = measure_ablations(model, held_out, [Ablation(layer, (expert,))])[:, 0]
        assert (effect.num_documents, effect.num_tokens) == (len(held_out), tokens_G.sum())
        assert effect.delta_loss == pytest.approx(effects_G.sum() / tokens_G.sum(), abs=1e-6)
        assert effect.ci_low is None or effect.ci_low <= effect.delta_loss <= effect.ci_high
        assert effect.estimate == pytest.approx(estimates_GLE[:, layer - 1, expert].sum() / tokens_G.sum(), abs=1e-6)
        for domain_id, of_domain in enumerate(effect.domains):
            at_G = [document.domain_id == domain_id for document in held_out]
            expected = effects_G[at_G].sum() / tokens_G[at_G].sum()
            assert of_domain.delta_loss == pytest.approx(expected, abs=1e-6)


def test_the_page_says_the_measured_effect_first(run: Run) -> None:
    pages = [name for name in run.figures if name.startswith("profile_L")]
    assert len(pages) == 2
    words = " ".join(text.get_text() for ax in run.figures[pages[0]].axes for text in ax.texts)
    assert "measured on" in words
    assert words.index("measured on") < words.index("estimated by gradient")
