"""Contribution on a real run of a tiny model: against its own experts module, heard by hooks, and a plain matmul."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from moescope import capture
from moescope.analyses.contribution.analysis import Contribution
from moescope.analyses.contribution.table import num_for_half
from moescope.corpora import Corpus, Sampler
from moescope.errors import UsageError
from moescope.models import MoEModel
from moescope.run import Run
from tests.analyses.runs import small_corpus, tiny_model

NUM_TOKENS = 700
LAYERS = [0, 1, 2, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(model: MoEModel, corpus: Corpus) -> Run:
    return capture(model, corpus, ["contribution"], num_tokens=NUM_TOKENS)


def heard(model: MoEModel, corpus: Corpus, layer: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """By forward hooks on transformers' own modules: inputs, ids, weights and output of a layer's experts."""
    parts: list[tuple[torch.Tensor, ...]] = []
    sampler = Sampler(corpus, model.tokenizer, num_tokens=NUM_TOKENS, max_positions=model.max_positions)
    experts = model.hf.model.layers[layer].mlp.experts
    for batch in sampler:
        calls: list[tuple[torch.Tensor, ...]] = []
        handle = experts.register_forward_hook(lambda _, given, output, calls=calls: calls.append((*given, output)))
        with torch.no_grad():
            model.hf(input_ids=batch.input_ids_BS, use_cache=False)
        handle.remove()
        ((hidden, ids, weights, output),) = calls
        parts.append(
            tuple(tensor.reshape(-1, tensor.shape[-1])[batch.keep_T] for tensor in (hidden, ids, weights, output))
        )
    return tuple(torch.cat([part[part_index] for part in parts]) for part_index in range(4))  # type: ignore[return-value]


@pytest.mark.parametrize("layer", [0, 2])
def test_against_the_models_own_experts_module(run: Run, model: MoEModel, corpus: Corpus, layer: int) -> None:
    hidden, ids, weights, output = (tensor.double() for tensor in heard(model, corpus, layer))
    module = model.hf.model.layers[layer].mlp.experts
    gate_up, down = module.gate_up_proj.detach().double(), module.down_proj.detach().double()
    width = down.shape[2]
    norms, saliency, shares, counts = np.zeros(8), np.zeros(8), np.zeros(8), np.zeros(8)
    sums = torch.zeros(8, hidden.shape[1], dtype=torch.float64)
    total = torch.zeros_like(hidden)
    for t in range(len(hidden)):
        for k in range(ids.shape[1]):
            expert, weight = int(ids[t, k]), float(weights[t, k])
            both = gate_up[expert] @ hidden[t]
            own = down[expert] @ (torch.nn.functional.silu(both[:width]) * both[width:])
            total[t] += weight * own
            sums[expert] += own
            norm = float(own.norm())
            counts[expert] += 1
            norms[expert] += norm
            saliency[expert] += weight * norm
            shares[expert] += weight * float(own @ output[t]) / float(output[t] @ output[t])
    torch.testing.assert_close(total, output, rtol=1e-4, atol=1e-5)  # the sum of w o is the module's output
    at = run.tables["contribution"].sel(layer=layer)
    assert np.array_equal(at.num_selected, counts)
    np.testing.assert_allclose(at.output_norm_mean, norms / counts, rtol=1e-4)
    np.testing.assert_allclose(at.saliency_mean, saliency / counts, rtol=1e-4)
    np.testing.assert_allclose(at.output_share, shares / NUM_TOKENS, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(at.mean_output, (sums / torch.from_numpy(counts)[:, None]).numpy(), atol=1e-5)


def test_promoted_tokens_are_a_plain_matmul(run: Run, model: MoEModel) -> None:
    table = run.tables["contribution"]
    folded = model.hf.lm_head.weight.detach().double() * model.hf.model.norm.weight.detach().double()
    known = len(model.tokenizer)
    for layer in LAYERS:
        means = torch.from_numpy(table.mean_output.sel(layer=layer).values).double()
        logits = means @ folded.T
        logits -= logits.mean(1, keepdim=True)
        for expert in range(8):
            at = table.sel(layer=layer, expert=expert)
            order = logits[expert, :known].argsort(descending=True)
            assert at.promoted_token_id.values.tolist() == order[:10].tolist()
            assert at.suppressed_token_id.values.tolist() == order.flip(0)[:10].tolist()
            np.testing.assert_allclose(at.promoted_logit, logits[expert, order[:10]], rtol=1e-4)
            above = (logits[expert] - logits.mean(0))[order[:10]]
            np.testing.assert_allclose(at.promoted_logit_above_layer, above, rtol=1e-3, atol=1e-5)


def test_tables_and_figures(run: Run, tmp_path: Path) -> None:
    frames = dict(run.frames)
    assert len(frames["contribution"]) == 4 * 8
    assert len(frames["contribution_domains"]) == 4 * 3 * 8
    assert len(frames["promoted_tokens"]) == 4 * 8 * 2 * 10
    assert (frames["contribution"].groupby("layer").output_share.sum().round(9) == 1).all()
    by_domain = frames["contribution_domains"].groupby(["layer", "expert"]).num_selected.sum()
    assert np.array_equal(by_domain, frames["contribution"].set_index(["layer", "expert"]).num_selected)
    leaders = frames["contribution_top"]
    assert leaders.layer.tolist() == LAYERS and (leaders.num_tokens < NUM_TOKENS).all()
    at = run.tables["contribution"]
    assert leaders.expert.tolist() == at.selection_half_output_share.argmax("expert").values.tolist()
    names = []
    for name, figure in run.figures.items():
        figure.savefig(tmp_path / f"{name}.png", dpi=60)
        names.append(name)
    assert names == ["contribution_share", "contribution_norms", "promoted_tokens"]


def test_as_many_tokens_as_asked_for(model: MoEModel, corpus: Corpus) -> None:
    run = capture(model, corpus, [Contribution(top_tokens=3)], num_tokens=NUM_TOKENS)
    assert run.tables["contribution"].sizes["rank"] == 3
    assert run.manifest.options["contribution"] == {"top_tokens": 3}
    with pytest.raises(UsageError, match="`top_tokens=0`"):
        Contribution(top_tokens=0)


def test_half_of_a_sum() -> None:
    assert num_for_half([0.25, 0.25, 0.25, 0.25]) == 2
    assert num_for_half([0.1, np.nan, 0.6, 0.3]) == 1
    assert num_for_half([0.4, 0.1, 0.3, 0.2]) == 2


def test_without_its_head_a_model_promotes_nothing_and_gaps_are_gaps(corpus: Corpus, tmp_path: Path) -> None:
    from moescope.models import load_model
    from tests.families import build, save

    short = load_model(str(save(build("olmoe"), tmp_path)), device="cpu", layers=[1])
    run = capture(short, corpus, ["contribution"], num_tokens=3, layers=[1])
    assert len([note for note in run.manifest.notes if "promoted tokens are left out" in note]) == 1
    frames = dict(run.frames)
    assert "promoted_tokens" not in frames
    frame = frames["contribution"]
    assert (frame.num_selected == 0).any()
    assert np.array_equal(frame.saliency_mean.isna(), frame.num_selected == 0)
    for figure in run.figures.values():
        figure.canvas.draw()


def test_an_expert_that_no_token_was_routed_to_promotes_none(model: MoEModel, corpus: Corpus) -> None:
    run = capture(model, corpus, ["contribution"], num_tokens=3)
    at = run.tables["contribution"]
    unseen = at.num_selected.values == 0
    assert unseen.any() and not unseen.all()
    assert ((at.promoted_token_id.values == -1).all(axis=2) == unseen).all()
    rows = dict(run.frames)["promoted_tokens"]
    assert len(rows) == int((~unseen).sum()) * 20
    for figure in run.figures.values():
        figure.canvas.draw()
