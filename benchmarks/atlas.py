"""What the atlas costs: a plain loop of one full pass per expert over the exact and over the gradient method, on nano.

    uv run python -m benchmarks.atlas

All sides lose the same tokens' next tokens, through the same head, in the same batches. The loop is run on a random
sample, as many experts of each layer; against the exact method, which ablates the same ones, as it is, against the
gradient method, which does all, scaled to their number. A last line says how far exact and loop differ, and how well
the gradient ranks the experts that were ablated.

Bounds of the exact method: from a layer of random depth on, half of the blocks and the whole head are run again, so
(blocks + head) / (blocks / 2 + head), 1.7 on nano, times what is saved on documents that did not choose the expert.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

import moescope
from benchmarks.timing import alternate, report
from moescope.corpora import Batch, Sampler
from moescope.interventions.ablation import Ablation, ablation_effects
from moescope.interventions.gradient import first_order_effects
from moescope.interventions.losses import next_tokens, token_losses
from moescope.measures.correlation import correlate_experts
from moescope.models import MoEModel
from moescope.models.seam import ExpertCall, transformed


@torch.inference_mode()
def losses(model: MoEModel, batch: Batch) -> torch.Tensor:
    """Nats of each document in one full pass."""
    next_BS = next_tokens(batch)
    at_BS = next_BS >= 0
    hidden_BSM = model.last_hidden(batch.input_ids_BS)
    assert hidden_BSM is not None
    losses_n = token_losses(model, hidden_BSM[at_BS], next_BS[at_BS]).double()
    zeros_B = torch.zeros(next_BS.shape[0], dtype=torch.float64, device=losses_n.device)
    return zeros_B.index_add_(0, at_BS.nonzero()[:, 0], losses_n)


def loop(model: MoEModel, batch: Batch, ablations: list[Ablation]) -> torch.Tensor:
    """Δ loss by document and ablation, one full pass for each."""
    plain_B = losses(model, batch)
    effects = []
    for ablation in ablations:
        (expert,) = ablation.experts

        def silence(call: ExpertCall, expert: int = expert) -> tuple[torch.Tensor, torch.Tensor]:
            return call.expert_ids_NK, call.weights_NK.masked_fill(call.expert_ids_NK == expert, 0.0)

        with transformed(model.seams, {ablation.layer: [silence]}):
            effects.append(losses(model, batch) - plain_B)
    return torch.stack(effects, 1)


def main() -> None:
    """Measures and prints JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-tokens", type=int, default=3_000)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    model, corpus = moescope.load_model("nano"), moescope.load_corpus("embedded")
    sampler = Sampler(
        corpus, model.tokenizer, num_tokens=arguments.num_tokens, batch_tokens=arguments.batch_tokens,
        max_positions=model.max_positions,
    )  # fmt: skip
    batches = [batch.to(model.device) for batch in sampler]
    # As many of each layer, drawn at random: how deep a layer lies decides what the exact method costs.
    generator, each = np.random.default_rng(0), max(1, arguments.experts // len(model.layers))
    drawn_LX = [sorted(generator.permutation(model.num_experts)[:each].tolist()) for _ in model.layers]
    ablations = [Ablation(layer, (e,)) for layer, drawn_X in zip(model.layers, drawn_LX, strict=True) for e in drawn_X]
    num_every = len(model.layers) * model.num_experts

    def plain() -> torch.Tensor:
        return torch.cat([loop(model, batch, ablations) for batch in batches])

    def exact() -> torch.Tensor:
        return torch.cat(
            [ablation_effects(model, batch, ablations, batch_tokens=arguments.batch_tokens) for batch in batches]
        )

    def gradient() -> torch.Tensor:
        found = [first_order_effects(model, batch) for batch in batches]
        return torch.cat([effects.effects_BLE + effects.curvatures_BLE for effects in found])

    facts = {"num_tokens": arguments.num_tokens, "experts": len(ablations), "threads": torch.get_num_threads()}
    loop_seconds, exact_seconds, gradient_seconds = alternate(plain, exact, gradient, repeats=arguments.repeats)
    report("atlas/nano-loop-over-exact", loop_seconds, exact_seconds, **facts, device=str(model.device))
    scaled = [seconds * num_every / len(ablations) for seconds in loop_seconds]
    report("atlas/nano-loop-over-gradient", scaled, gradient_seconds, **facts, ablations=num_every)
    tokens = sum(int((batch.tokens.next_token_ids_T >= 0).sum()) for batch in batches)
    looped_P, exact_P = (effects_BP.sum(0) / tokens for effects_BP in (plain(), exact()))
    first_LE = gradient().sum(0) / tokens
    first_P = torch.stack([first_LE[model.layers.index(a.layer), a.experts[0]] for a in ablations])
    found = correlate_experts(first_P.cpu().numpy(), exact_P.cpu().numpy())
    line = {
        "name": "atlas/nano-agreement",
        "exact_from_loop_at_most": float((looped_P - exact_P).abs().max()),
        "rank_correlation": round(found.value, 3),
        "low": round(found.low, 3),
        "high": round(found.high, 3),
    }
    print(json.dumps(line | facts), flush=True)


if __name__ == "__main__":
    main()
