"""What a corpus' loss is without some experts of a layer, beside experts that are used as much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moescope.analyses.base import Context
from moescope.corpora import Sampler
from moescope.errors import UsageError
from moescope.interventions.ablation import Ablation, ablation_effects, check_ablations
from moescope.interventions.atlas import Documents, Means, domain_means
from moescope.interventions.controls import NUM_CONTROLS, USAGE_TOKENS, count_usage, matched_draws
from moescope.interventions.losses import check_complete
from moescope.interventions.rerun import keep
from moescope.models.token_text import num_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure
    from torch import Tensor

    from moescope.corpora import Batch, Corpus
    from moescope.models import MoEModel

ALL = "all"
BITS = 1 / np.log(2)


@dataclass(frozen=True)
class AblationRun:
    """The effect of an ablation on a corpus.

    Attributes:
        ablation: What was ablated.
        controls: The same number of other experts of the layer each, used about as much.
        frequencies: Share of a sample's tokens that chose each target, then each control (any of its experts).
        documents: Documents it was measured on.
        bytes_G: Bytes of text that each document's predicted tokens are.
        losses_G: Nats lost at them, with all experts.
        selected_G: Tokens of each that chose an ablated expert.
        effects_GP: Δ loss of the ablation, then of each control, nats summed over the document.
        context: What was looked at.
        sampler: Which tokens were counted.
    """

    ablation: Ablation
    controls: list[Ablation]
    frequencies: list[float]
    documents: Documents
    bytes_G: NDArray[np.int64]
    losses_G: NDArray[np.float64]
    selected_G: NDArray[np.int64]
    effects_GP: NDArray[np.float64]
    context: Context
    sampler: Sampler

    def means(self, effects_GP: NDArray[np.float64]) -> Means:
        """Means over all documents and each domain's."""
        return domain_means(effects_GP, self.documents, len(self.context.domains), seed=self.context.seed)

    def frames(self) -> dict[str, pd.DataFrame]:
        """`ablate`: a row per domain (first `all`). `ablate_controls`: a row per control and domain."""
        means = self.means(self.effects_GP)
        control_GP = self.effects_GP[:, 1:]
        excess = self.means(self.effects_GP[:, :1] - control_GP.mean(1, keepdims=True)) if self.controls else None
        names = [ALL, *self.context.domains]
        rows: list[dict[str, Any]] = []
        for place, name in enumerate(names):
            at_G = self.documents.domain_ids_G == place - 1 if place else np.ones(len(self.losses_G), bool)
            tokens, num_bytes = int(self.documents.predicted_G[at_G].sum()), int(self.bytes_G[at_G].sum())
            loss, effect = float(self.losses_G[at_G].sum()), float(self.effects_GP[at_G, 0].sum())
            controls = means.mean_DP[place, 1:]
            known = bool(self.controls) and bool(tokens)
            rows.append(
                {
                    "domain": name,
                    "num_tokens": tokens,
                    "num_documents": int(at_G.sum()),
                    "num_bytes": num_bytes,
                    "num_selected": int(self.selected_G[at_G].sum()),
                    "loss": _ratio(loss, tokens),
                    "loss_ablated": _ratio(loss + effect, tokens),
                    "delta_loss": means.mean_DP[place, 0],
                    "ci_low": means.low_DP[place, 0],
                    "ci_high": means.high_DP[place, 0],
                    "bits_per_byte": _ratio(loss * BITS, num_bytes),
                    "bits_per_byte_ablated": _ratio((loss + effect) * BITS, num_bytes),
                    "control_delta_loss": float(controls.mean()) if known else np.nan,
                    "control_quantile_05": float(np.quantile(controls, 0.05)) if known else np.nan,
                    "control_quantile_95": float(np.quantile(controls, 0.95)) if known else np.nan,
                    "num_controls": len(self.controls),
                    "num_controls_below": int((controls < means.mean_DP[place, 0]).sum()),
                    "excess": excess.mean_DP[place, 0] if excess else np.nan,
                    "excess_ci_low": excess.low_DP[place, 0] if excess else np.nan,
                    "excess_ci_high": excess.high_DP[place, 0] if excess else np.nan,
                }
            )
        each = [
            {
                "control": number,
                "experts": " ".join(map(str, control.experts)),
                "selection_frequency": self.frequencies[number + 1],
                "domain": name,
                "delta_loss": means.mean_DP[place, number + 1],
                "ci_low": means.low_DP[place, number + 1],
                "ci_high": means.high_DP[place, number + 1],
            }
            for number, control in enumerate(self.controls)
            for place, name in enumerate(names)
        ]
        columns = ["control", "experts", "selection_frequency", "domain", "delta_loss", "ci_low", "ci_high"]
        return {"ablate": pd.DataFrame(rows), "ablate_controls": pd.DataFrame(each, columns=columns)}

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Δ loss by domain beside the controls."""
        from moescope.analyses.atlas_figures import ablation

        yield "ablate", ablation(self.frames()["ablate"], self.words, self.context)

    @property
    def words(self) -> str:
        """What was ablated, in words."""
        experts = ", ".join(map(str, self.ablation.experts))
        return f"expert{'s' if len(self.ablation.experts) > 1 else ''} {experts} of layer {self.ablation.layer}"


def ablate(
    model: MoEModel,
    corpus: Corpus,
    *,
    layer: int,
    experts: Sequence[int],
    num_tokens: int = 100_000,
    num_controls: int = NUM_CONTROLS,
    seed: int = 0,
    sequence_length: int | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> AblationRun:
    """Measures the loss on a corpus with and without some experts of a layer, ablated together.

    The same is done with up to `num_controls` random sets of other experts of the layer that are chosen about as often
    (counted on a sample of the corpus). All are measured on the same tokens, with the layers below run once.

    Args:
        model: From `load_model`, with its whole depth.
        corpus: From `load_corpus`.
        layer: A MoE layer.
        experts: One of its experts or several.
        num_tokens: Tokens to count, split evenly over the corpus' domains.
        num_controls: Controls to draw; fewer where the layer has not that many experts.
        seed: Chooses documents, windows, controls and replicates.
        sequence_length: Longest window of a document.
        batch_tokens: Padded tokens in a batch.
        progress: Called after each batch with the number of tokens counted in it.

    Raises:
        UsageError: A layer or expert that does not exist, or an expert named twice.
        ModelError: The model is not complete.
    """
    check_complete(model, "the effect of an ablation")
    ablation = Ablation(layer, tuple(sorted(experts)))
    check_ablations(model, [ablation])
    if num_controls < 0:
        raise UsageError(f"{num_controls} controls were asked for", expected="0 or more")
    usage = count_usage(
        model,
        [layer],
        corpus=corpus,
        num_tokens=min(num_tokens, USAGE_TOKENS),
        seed=seed,
        batch_tokens=batch_tokens,
    )
    targets = [(layer, expert) for expert in ablation.experts]
    draws = matched_draws(usage.counts, targets, num=num_controls, seed=seed) if num_controls else []
    controls = [Ablation(layer, tuple(sorted(draw.values()))) for draw in draws]
    sampler = Sampler(
        corpus,
        model.tokenizer,
        num_tokens=num_tokens,
        seed=seed,
        sequence_length=sequence_length,
        max_positions=model.max_positions,
        batch_tokens=batch_tokens,
    )
    parts: list[dict[str, NDArray]] = []
    for batch in sampler:
        placed = batch.to(model.device)
        parts.append(_measured(model, placed, [ablation, *controls], batch_tokens))
        if progress is not None:
            progress(placed.tokens.num_tokens)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    context = Context(
        model=model,
        layers=(layer,),
        domains=corpus.domains,
        groups=corpus.groups,
        corpus_name=corpus.name,
        num_tokens=int(sampler.num_tokens_D.sum()),
        seed=seed,
        predictions=False,
    )
    return AblationRun(
        ablation,
        controls,
        [sum(usage.frequency(layer, expert) for expert in a.experts) for a in (ablation, *controls)],
        Documents(whole["hashes"], whole["domain_ids"], whole["counted"], whole["predicted"]),
        whole["bytes"],
        whole["losses"],
        whole["selected"],
        whole["effects"],
        context,
        sampler,
    )


def _measured(
    model: MoEModel, batch: Batch, ablations: Sequence[Ablation], batch_tokens: int
) -> dict[str, NDArray[Any]]:
    """What one batch brings, by document."""
    import torch

    tokens = batch.tokens
    layer = ablations[0].layer
    kept = keep(model, batch, [layer])
    effects_BP = ablation_effects(model, batch, ablations, batch_tokens=batch_tokens, kept=kept)
    chosen_TK = kept.calls[layer].expert_ids_NK.to(batch.keep_T.device)[batch.keep_T]
    hit_T = torch.isin(chosen_TK, torch.tensor(ablations[0].experts, device=chosen_TK.device)).any(1)

    def by_row(values_T: Tensor) -> NDArray:
        zeros = torch.zeros(tokens.num_documents, dtype=values_T.dtype, device=values_T.device)
        return zeros.index_add_(0, tokens.rows_T, values_T).cpu().numpy()

    return {
        "hashes": tokens.document_hashes_B.cpu().numpy(),
        "domain_ids": tokens.domain_ids_B.cpu().numpy(),
        "counted": by_row(torch.ones_like(tokens.rows_T)),
        "predicted": by_row((tokens.next_token_ids_T >= 0).long()),
        "selected": by_row(hit_T.long()),
        "losses": kept.losses_BS.double().sum(1).cpu().numpy(),
        "bytes": num_bytes(model.tokenizer, kept.next_BS.cpu().numpy()),
        "effects": effects_BP.cpu().numpy(),
    }


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")
