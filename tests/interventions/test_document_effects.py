"""Effects by document on the embedded model: exact ones against full passes, and means with intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moescope.corpora import Sampler, load_corpus
from moescope.interventions import Ablate, intervening
from moescope.interventions.ablation import Ablation
from moescope.interventions.document_effects import (
    Documents,
    batches_of,
    domain_means,
    measure_ablations,
    measure_first_order,
)
from moescope.models import load_model
from moescope.statistics.samples.texts import SampledDocument, TextSample
from tests.families import build, save, tokenizer


@pytest.fixture(scope="module")
def nano():
    return load_model("nano")


@pytest.fixture(scope="module")
def documents(nano) -> list[SampledDocument]:
    corpus = load_corpus("embedded")
    sample = TextSample(layers=[0], domains=list(corpus.domains), num_documents=1, length=40, seed=3)
    for batch in Sampler(corpus, nano.tokenizer, num_tokens=1000, seed=3):
        nano.listen(batch.input_ids_BS, batch.tokens, batch.keep_T, layers=[0], on_routing=sample.update)
    return [document for domain_id in range(22) for document in sample.documents(domain_id)]


@torch.no_grad()
def plain_loss(model, documents: list[SampledDocument]) -> np.ndarray:
    """Each document run alone by the family's own forward: nats summed, in float64."""
    losses = []
    for document in documents:
        logits_SV = model.hf(input_ids=torch.from_numpy(document.token_ids)[None], use_cache=False).logits[0].double()
        known = document.next_token_ids >= 0
        logp_SV = logits_SV.log_softmax(-1).numpy()
        losses.append(-logp_SV[np.flatnonzero(known), document.next_token_ids[known]].sum())
    return np.array(losses)


@pytest.mark.parametrize("num_documents", [6, pytest.param(22, marks=pytest.mark.slow)])
def test_exact_equals_a_full_pass_per_ablation_on_nano_for_20_random_experts(nano, documents, num_documents) -> None:
    """A third of the documents will do: each is compared by itself."""
    documents = documents[:num_documents]
    drawn = np.random.default_rng(5).permutation(16 * 64)[:20]
    ablations = [Ablation(int(place) // 64, (int(place) % 64,)) for place in drawn]
    tokens = Documents.of(documents).predicted_G.sum()
    plain_G = plain_loss(nano, documents)
    exact_GP = measure_ablations(nano, documents, ablations, batch_tokens=2048)
    for place, ablation in enumerate(ablations):
        with intervening(nano, [Ablate(ablation.layer, ablation.experts[0])]):
            changed_G = plain_loss(nano, documents)
        assert exact_GP[:, place].sum() / tokens == pytest.approx((changed_G - plain_G).sum() / tokens, abs=1e-5)
        assert np.allclose(exact_GP[:, place], changed_G - plain_G, atol=2e-3)
    assert np.abs(exact_GP).max() > 0.05


def test_first_order_does_not_depend_on_batches_and_is_straight_near_no_change(nano, documents) -> None:
    few = documents[:6]
    found = measure_first_order(nano, few, [7, 15], batch_tokens=64)
    other = measure_first_order(nano, few[::-1], [7, 15], batch_tokens=4096)
    assert np.allclose(found.effects_GLE, other.effects_GLE[::-1], atol=1e-4)
    assert np.allclose(found.losses_G, plain_loss(nano, few), rtol=1e-5)
    assert (found.selected_GLE.sum(2) == 8 * np.array([len(document.token_ids) for document in few])[:, None]).all()


def test_what_the_tokenizer_puts_before_a_text_comes_back(tmp_path) -> None:
    folder = save(build("olmoe"), tmp_path)
    made = tokenizer()
    from tokenizers.processors import TemplateProcessing

    made.backend_tokenizer.post_processor = TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    made.save_pretrained(folder)
    model = load_model(str(folder), device="cpu")
    text = SampledDocument(np.array([5, 6, 7]), np.array([6, 7, -1]), np.arange(3), 11, 0)
    (batch,) = batches_of([text], model, 64)
    assert batch.input_ids_BS.tolist() == [[0, 5, 6, 7]]
    assert batch.keep_T.tolist() == [1, 2, 3]
    assert batch.tokens.next_token_ids_T.tolist() == [6, 7, -1]


def some_effects(seed: int, num_documents: int) -> tuple[np.ndarray, Documents]:
    generator = np.random.default_rng(seed)
    predicted_G = generator.integers(1, 60, num_documents)
    documents = Documents(
        generator.integers(-(2**62), 2**62, num_documents),
        generator.integers(0, 2, num_documents),
        predicted_G + 1,
        predicted_G,
    )
    effects_GP = predicted_G[:, None] * (generator.normal(size=(num_documents, 3)) + np.array([0.0, 0.5, 2.0]))
    return effects_GP, documents


def test_means_are_per_token_and_intervals_are_symmetric_in_sign() -> None:
    effects_GP, documents = some_effects(1, 60)
    means = domain_means(effects_GP, documents, 2, seed=1)
    turned = domain_means(-effects_GP, documents, 2, seed=1)
    at_G = documents.domain_ids_G == 1
    assert means.mean_DP[2] == pytest.approx(effects_GP[at_G].sum(0) / documents.predicted_G[at_G].sum())
    assert means.mean_DP[0] == pytest.approx(effects_GP.sum(0) / documents.predicted_G.sum())
    np.testing.assert_allclose(turned.low_DP, -means.high_DP)
    assert (means.low_DP < means.mean_DP).all()
    assert (means.p_value_DP[:, 2] < 1e-4).all()  # the mean effect is 2 times the spread over documents
    np.testing.assert_allclose(turned.p_value_DP, 1 - means.p_value_DP)


def test_what_one_document_carries_has_no_interval() -> None:
    effects_GP, documents = some_effects(2, 40)
    effects_GP[1:, 0] = 0.0
    means = domain_means(effects_GP, documents, 0, seed=1)
    assert means.effective_DP[0, 0] == pytest.approx(1)
    assert np.isnan([means.low_DP[0, 0], means.high_DP[0, 0], means.p_value_DP[0, 0]]).all()
    assert np.isfinite(means.low_DP[0, 1:]).all()


def test_under_five_effective_documents_there_is_no_interval() -> None:
    effects_GP, documents = some_effects(3, 30)
    documents.predicted_G[0] = 100_000
    means = domain_means(effects_GP, documents, 0, seed=1)
    assert np.isnan(means.low_DP).all()
    assert np.isfinite(means.mean_DP).all()


def test_few_documents_have_no_interval_and_none_no_mean() -> None:
    effects_GP, documents = some_effects(1, 12)
    documents.domain_ids_G[:] = np.arange(12) % 2
    means = domain_means(effects_GP, documents, 3, seed=0)
    assert np.isfinite(means.low_DP[0]).all()
    assert np.isnan(means.low_DP[1:]).all()
    assert np.isnan(means.mean_DP[3]).all()
    half = domain_means(effects_GP, documents, 3, within_G=np.zeros(12, bool), seed=0)
    assert np.isnan(half.mean_DP).all()
