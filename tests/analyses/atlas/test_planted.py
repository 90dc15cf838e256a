"""An expert that serves one domain alone, with a Δ loss that is known from the weights: named, and measured right."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moescope
from moescope.analyses.atlas.analysis import Atlas
from moescope.measures.resampling import halves
from moescope.models import load_model
from tests.families import build, save

LAYER, EXPERT = 1, 5
DOMAINS = {"letters": "ab", "signs": "xyz.", "digits": "123-"}


@torch.no_grad()
def planted_model(folder):
    """Two layers of eight experts: attention and all experts but one give 0; that one is selected for "a" and "b"."""
    made = build("olmoe", num_hidden_layers=2)
    bytes_of_domain = [1 + sorted_alphabet().index(character) for character in DOMAINS["letters"]]
    embedding = made.model.embed_tokens.weight
    embedding[:, 0] = -3.0
    embedding[bytes_of_domain, 0] = 3.0
    for layer in made.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.experts.down_proj.zero_()
    block = made.model.layers[LAYER].mlp
    block.gate.weight[EXPERT].zero_()
    block.gate.weight[EXPERT, 0] = 6.0
    gate, up = block.experts.gate_up_proj[EXPERT].chunk(2)
    gate[0].zero_()
    up[0].zero_()
    gate[0, 0] = up[0, 0] = 1.5
    # What it gives raises the logits of "a" and "b".
    block.experts.down_proj[EXPERT][:, 0] = 0.4 * made.lm_head.weight[bytes_of_domain].sum(0)
    return load_model(str(save(made, folder)), device="cpu")


def sorted_alphabet() -> list[str]:
    """The order of `tests.families.tokenizer`."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def known_delta(model, token: int, following: int) -> float:
    """By hand, in float64: the loss of the next token without the expert minus that with it."""
    weights = {name: tensor.double().numpy() for name, tensor in model.hf.state_dict().items()}
    eps = model.hf.config.rms_norm_eps

    def norm(x, gain):
        return x / np.sqrt((x**2).mean() + eps) * gain

    state = weights["model.embed_tokens.weight"][token]
    at = f"model.layers.{LAYER}."
    x = norm(state, weights[at + "post_attention_layernorm.weight"])
    scores = np.exp(weights[at + "mlp.gate.weight"] @ x)
    scores /= scores.sum()
    assert EXPERT in np.argsort(scores)[-2:]
    gate, up = np.split(weights[at + "mlp.experts.gate_up_proj"][EXPERT], 2)
    hidden = (gate @ x) / (1 + np.exp(-(gate @ x))) * (up @ x)
    output = weights[at + "mlp.experts.down_proj"][EXPERT] @ hidden

    def loss(state):
        logits = weights["lm_head.weight"] @ norm(state, weights["model.norm.weight"])
        return np.log(np.exp(logits).sum()) - logits[following]

    return float(loss(state) - loss(state + scores[EXPERT] * output))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    for domain, characters in DOMAINS.items():
        (folder / domain).mkdir()
        for number in range(40):
            text = "".join(generator.choice(list(characters), size=generator.integers(40, 70)))
            (folder / domain / f"{number}.txt").write_text(text, "utf-8")
    model = planted_model(tmp_path_factory.mktemp("model"))
    corpus = moescope.load_corpus(str(folder))
    analysis = Atlas(num_exact=4, exact_tokens=300)
    return model, moescope.capture(model, corpus, analyses=[analysis], num_tokens=4000, predictions=False)


def test_the_expert_is_named_and_its_effect_is_the_known_one(run) -> None:
    model, captured = run
    top = captured.frames["atlas_top"]
    row = top[(top.domain == "letters") & (top["rank"] == 0)].iloc[0]
    assert (row.layer, row.expert) == (LAYER, EXPERT)
    (sample,) = [kept for name, kept in captured.statistics.items() if name.startswith("atlas_text")]
    documents = sample.documents(captured.context.domains.index("letters"))
    held_out = [d for d in documents if halves(np.array([d.document_hash]), seed=0)[0]]
    deltas = [
        known_delta(model, token, following)
        for document in held_out
        for token, following in zip(document.token_ids.tolist(), document.next_token_ids.tolist(), strict=True)
        if following >= 0
    ]
    assert row.num_documents == len(held_out) >= 10
    assert np.mean(deltas) > 0.1
    assert row.delta_loss_measured == pytest.approx(np.mean(deltas), abs=1e-5)
    assert row.p_value < 1e-6
    # The estimate of so large an effect is another number.
    assert abs(row.delta_loss_estimate - np.mean(deltas)) > 0.01
    measured = captured.frames["atlas_measured"].set_index(["domain", "layer", "expert"])
    for domain in ("signs", "digits"):
        assert measured.loc[(domain, LAYER, EXPERT), "delta_loss_measured"] == 0


def test_the_finding_names_it_with_the_measured_effect_first(run) -> None:
    _, captured = run
    (finding,) = [found for found in captured.findings if "Ablating" in found.title]
    assert finding.title == f"Ablating expert {EXPERT} of layer {LAYER} raises the loss on letters"
    assert finding.verdict == "shown"
    assert finding.text.startswith("Measured on held-out documents")
    assert finding.text.index("Measured") < finding.text.index("Estimated by gradient")
