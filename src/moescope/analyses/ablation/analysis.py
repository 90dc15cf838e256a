"""The public `ablate`: the loss of a corpus with and without some experts of a layer, with matched controls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moescope.analyses.ablation.options import AblateOptions
from moescope.analyses.ablation.table import Measured, control_frame, domain_frame, table_of
from moescope.context import Context
from moescope.corpora import Sampler
from moescope.errors import warn
from moescope.interventions.ablation import Ablation, ablation_effects, check_ablations
from moescope.interventions.controls import USAGE_TOKENS, count_usage, matched_draws
from moescope.interventions.document_effects import Documents
from moescope.interventions.losses import check_complete
from moescope.interventions.rerun import keep
from moescope.models.token_text import num_bytes
from moescope.results import Made, Manifest, Outcome
from moescope.results.manifest import make_manifest

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.corpora import Batch, Corpus
    from moescope.models import MoEModel


@dataclass(frozen=True, repr=False)
class AblationRun(Outcome):
    """The effect of an ablation on a corpus.

    Attributes:
        ablation: The experts that were ablated.
        controls: The control ablations: as many other experts of the layer, selected about as often.
        table: Labeled numbers by `domain` (first `all`) and `control`.
        context: What was looked at.
        manifest: What was run, on what, with what.
    """

    ablation: Ablation
    controls: tuple[Ablation, ...]
    table: xr.Dataset
    context: Context
    manifest: Manifest

    @property
    def tables(self) -> Mapping[str, xr.Dataset]:
        """The table, as `ablate`."""
        return {"ablate": self.table}

    @cached_property
    def frames(self) -> Mapping[str, pd.DataFrame]:
        """`ablate`: a row per domain (first `all`). `ablate_controls`: a row per control and domain."""
        return {"ablate": domain_frame(self.table), "ablate_controls": control_frame(self.table)}

    @property
    def figures(self) -> Mapping[str, Figure]:
        """`ablate`: Δ loss by domain, with the controls'."""
        from moescope.analyses.ablation import figures as draw

        return Made({"ablate": partial(draw.by_domain, self.frames["ablate"], self.description, self.context)})

    @property
    def description(self) -> str:
        """The ablated experts in a few words."""
        experts = ", ".join(map(str, self.ablation.experts))
        return f"expert{'s' if len(self.ablation.experts) > 1 else ''} {experts} of layer {self.ablation.layer}"


def ablate(
    model: MoEModel,
    corpus: Corpus,
    *,
    layer: int,
    experts: Sequence[int],
    num_controls: int = AblateOptions.num_controls,
    num_tokens: int = 100_000,
    seed: int = 0,
    sequence_length: int | None = None,
    batch_tokens: int = 8192,
    command_line: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> AblationRun:
    """Measures the loss on a corpus with and without some experts of a layer, ablated together.

    The same is measured for up to `num_controls` random sets of other experts of the layer that are selected about as
    often (counted on a sample of the corpus), on the same tokens. The layers below run once for all.

    Args:
        model: From `load_model`, with its whole depth.
        corpus: From `load_corpus`.
        layer: A MoE layer.
        experts: One of its experts or several.
        num_controls: Controls to draw; fewer where the layer does not have that many experts.
        num_tokens: Tokens to count, split evenly over the corpus' domains.
        seed: Chooses documents, windows, controls and replicates.
        sequence_length: Longest window of a document, in tokens.
        batch_tokens: Padded tokens in a batch.
        command_line: The command as it was typed, for the manifest.
        progress: Called after each batch with the number of tokens counted in it.

    Returns:
        The run: `.table`, `.frames`, `.figures`, `.manifest`, `.save(path)`.

    Raises:
        UsageError: A layer or expert that does not exist, or an expert named twice.
        ModelError: The model is not complete.
    """
    started = time.perf_counter()
    options = AblateOptions(layer=layer, experts=tuple(sorted(experts)), num_controls=num_controls)
    check_complete(model, "the effect of an ablation")
    ablation = Ablation(layer, options.experts)
    check_ablations(model, [ablation])
    controls, frequencies = _controls(model, corpus, ablation, options.num_controls, num_tokens, seed, batch_tokens)
    notes = []
    if len(controls) < num_controls:
        notes.append(f"{len(controls)} controls instead of {num_controls}: layer {layer} has no more experts to draw")
        warn(notes[-1], stacklevel=2)
    sampler = Sampler(
        corpus,
        model.tokenizer,
        num_tokens=num_tokens,
        seed=seed,
        sequence_length=sequence_length,
        max_positions=model.max_positions,
        batch_tokens=batch_tokens,
    )
    pass_started = time.perf_counter()
    measured = _measure(model, sampler, [ablation, *controls], batch_tokens, progress)
    pass_seconds = time.perf_counter() - pass_started
    context = Context(
        model=model.info,
        layers=(layer,),
        domains=corpus.labels,
        groups=corpus.label_groups,
        corpus_name=corpus.name,
        num_tokens=int(sampler.num_tokens_D.sum()),
        seed=seed,
        predictions=False,
        corpus_fingerprint=corpus.fingerprint,
    )
    settings: dict[str, Any] = {
        "num_tokens": num_tokens,
        "sequence_length": sequence_length,
        "batch_tokens": batch_tokens,
        **asdict(options),
        "controls": [list(control.experts) for control in controls],
    }
    table = table_of(measured, controls, frequencies, corpus.labels, seed)
    manifest = make_manifest(
        context,
        command="ablate",
        analyses=["ablate"],
        options=settings if command_line is None else settings | {"command_line": command_line},
        corpus=corpus,
        sampler=sampler,
        notes=notes,
        pass_seconds=pass_seconds,
        total_seconds=time.perf_counter() - started,
    )
    return AblationRun(ablation, tuple(controls), table, context, manifest)


def _controls(
    model: MoEModel,
    corpus: Corpus,
    ablation: Ablation,
    num_controls: int,
    num_tokens: int,
    seed: int,
    batch_tokens: int,
) -> tuple[list[Ablation], list[float]]:
    """Control ablations, and the selection frequency of the ablation and of each control."""
    layer = ablation.layer
    usage = count_usage(
        model, [layer], corpus=corpus, num_tokens=min(num_tokens, USAGE_TOKENS), seed=seed, batch_tokens=batch_tokens
    )
    targets = [(layer, expert) for expert in ablation.experts]
    draws = matched_draws(usage.counts, targets, num=num_controls, seed=seed) if num_controls else []
    controls = [Ablation(layer, tuple(sorted(draw.values()))) for draw in draws]
    return controls, [sum(usage.frequency(layer, expert) for expert in a.experts) for a in (ablation, *controls)]


def _measure(
    model: MoEModel,
    sampler: Sampler,
    ablations: Sequence[Ablation],
    batch_tokens: int,
    progress: Callable[[int], None] | None,
) -> Measured:
    """Runs the text through the model, with and without each ablation."""
    parts: list[dict[str, NDArray]] = []
    for batch in sampler:
        on_device = batch.to(model.device)
        parts.append(_batch(model, on_device, ablations, batch_tokens))
        if progress is not None:
            progress(on_device.tokens.num_tokens)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Measured(
        Documents(whole["hashes"], whole["domain_ids"], whole["counted"], whole["predicted"]),
        whole["bytes"],
        whole["losses"],
        whole["selected"],
        whole["effects"],
    )


def _batch(model: MoEModel, batch: Batch, ablations: Sequence[Ablation], batch_tokens: int) -> dict[str, NDArray[Any]]:
    """What one batch measures, by document; the first ablation is the one that is not a control."""
    tokens = batch.tokens
    layer = ablations[0].layer
    kept = keep(model, batch, [layer])
    effects_BP = ablation_effects(model, batch, ablations, batch_tokens=batch_tokens, kept=kept)
    selected_TK = kept.calls[layer].expert_ids_NK.to(batch.keep_T.device)[batch.keep_T]
    hit_T = torch.isin(selected_TK, torch.tensor(ablations[0].experts, device=selected_TK.device)).any(1)

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
