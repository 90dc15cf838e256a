"""The public `saturation`: how many of a token's experts an earlier checkpoint and the final model both select."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.analyses.saturation.options import SaturationOptions
from moescope.analyses.saturation.table import frame_of, table_of
from moescope.context import Context
from moescope.corpora import Sampler
from moescope.errors import ModelError, UsageError, unwarned
from moescope.models import load_model
from moescope.results import Made, Manifest, Outcome
from moescope.results.manifest import make_manifest
from moescope.statistics.provenance import Provenance
from moescope.statistics.saturation import RouterSaturation, RoutingPair

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.corpora import Corpus
    from moescope.models import MoEModel
    from moescope.records import Routing
    from moescope.statistics.base import Statistic


@dataclass(frozen=True, repr=False)
class SaturationRun(Outcome):
    """Saturation of checkpoints against the final model.

    Attributes:
        table: By `checkpoint, layer`: the variables of `RouterSaturation.compute`; coordinate `share` of training,
            percent, NaN where it was not given.
        statistics: The counts behind it, by checkpoint.
        context: What was looked at; `model` is the final one.
        manifest: What was run, on what, with what.
    """

    table: xr.Dataset
    statistics: dict[str, RouterSaturation]
    context: Context
    manifest: Manifest

    @property
    def tables(self) -> Mapping[str, xr.Dataset]:
        """The table, as `saturation`."""
        return {"saturation": self.table}

    @cached_property
    def frames(self) -> Mapping[str, pd.DataFrame]:
        """`saturation`: a row per checkpoint and layer."""
        return {"saturation": frame_of(self.table)}

    @property
    def figures(self) -> Mapping[str, Figure]:
        """Saturation over training (from two checkpoints on), a line a layer; over layers, a line a checkpoint."""
        from moescope.analyses.saturation import figures as draw

        makers = {"saturation_by_layer": partial(draw.by_layer, self.table, self.context)}
        if self.table.sizes["checkpoint"] > 1:
            makers = {"saturation_over_training": partial(draw.over_training, self.table, self.context)} | makers
        return Made(makers)

    @property
    def state(self) -> Mapping[str, Statistic]:
        """The counts of each checkpoint, numbered in their order."""
        return {f"saturation_{index}": statistic for index, statistic in enumerate(self.statistics.values())}


def saturation(
    model: MoEModel,
    checkpoints: Sequence[str | Path | MoEModel],
    corpus: Corpus,
    *,
    labels: Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
    num_tokens: int = 100_000,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    sequence_length: int | None = None,
    batch_tokens: int = 8192,
    command_line: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> SaturationRun:
    """Routes the same tokens through a model and each of its checkpoints, and counts the experts that both select.

    Two models are in memory at a time; the final one runs once for each checkpoint.

    Args:
        model: The final model.
        checkpoints: Earlier states of it: folders, hub ids (`id` or `id@revision`), revisions of the final model's
            repository, or loaded models.
        corpus: From `load_corpus`.
        labels: Name of each checkpoint in tables and figures; None: its folder's or revision's name.
        shares: Share of training that each had completed, percent, for tables and figures.
        num_tokens: Tokens to count, split evenly over the corpus' domains.
        layers: MoE layers; None for all that are loaded.
        seed: Chooses documents and windows.
        sequence_length: Longest window of a document, in tokens.
        batch_tokens: Padded tokens in a batch.
        command_line: The command as it was typed, for the manifest.
        progress: Called after each batch with the number of tokens counted in it.

    Returns:
        The run: `.table`, `.frames`, `.figures`, `.statistics`, `.manifest`, `.save(path)`.

    Raises:
        UsageError: No checkpoint, a name twice, or another number of labels or shares than of checkpoints.
        ModelError: A checkpoint cannot be loaded, or is not an earlier state of this model.
    """
    started = time.perf_counter()
    options = SaturationOptions(
        checkpoints=tuple(_name(checkpoint) for checkpoint in checkpoints),
        labels=None if labels is None else tuple(map(str, labels)),
        shares=None if shares is None else tuple(map(float, shares)),
    )
    names = list(options.labels or _labels(options.checkpoints))
    if len(set(names)) < len(names):
        raise UsageError(f"two checkpoints have one name: {', '.join(names)}", remedy="give each its own in `labels`")
    chosen = model.check_layers(layers)
    sampler = Sampler(
        corpus,
        model.tokenizer,
        num_tokens=num_tokens,
        seed=seed,
        sequence_length=sequence_length,
        max_positions=model.max_positions,
        batch_tokens=batch_tokens,
    )
    statistics: dict[str, RouterSaturation] = {}
    pass_seconds = 0.0
    for name, checkpoint in zip(names, checkpoints, strict=True):
        earlier = _load(model, checkpoint, chosen)
        _check_same_kind(model, earlier, name)
        pass_started = time.perf_counter()
        # The same tokens again: the sampler's warnings would be repeated.
        with unwarned() if statistics else nullcontext():
            statistics[name] = _compare(model, earlier, sampler, chosen, progress)
        pass_seconds += time.perf_counter() - pass_started
    context = Context(
        model=model.info,
        layers=tuple(chosen),
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
        "labels": names,
    }
    manifest = make_manifest(
        context,
        command="saturation",
        analyses=["saturation"],
        options=settings if command_line is None else settings | {"command_line": command_line},
        corpus=corpus,
        sampler=sampler,
        pass_seconds=pass_seconds,
        total_seconds=time.perf_counter() - started,
    )
    return SaturationRun(table_of(statistics, options.shares), statistics, context, manifest)


def _compare(
    final: MoEModel,
    checkpoint: MoEModel,
    sampler: Sampler,
    layers: Sequence[int],
    progress: Callable[[int], None] | None,
) -> RouterSaturation:
    """One pass of the sample through both models, batch by batch."""
    statistic = RouterSaturation(
        layers=list(layers),
        num_experts=final.num_experts,
        num_experts_per_token=final.num_experts_per_token,
        device=final.device,
    )
    decided: dict[int, Routing] = {}

    def keep(routing: Routing) -> None:
        decided[routing.layer] = routing

    def count(routing: Routing) -> None:
        statistic.update(RoutingPair(checkpoint=routing, final=decided.pop(routing.layer)))

    for batch in sampler:
        for model, on_routing in ((final, keep), (checkpoint, count)):
            placed = batch.to(model.device)
            model.listen(
                placed.input_ids_BS,
                placed.tokens,
                placed.keep_T,
                layers=layers,
                on_routing=on_routing,
                needs_logits=False,
            )
        if progress is not None:
            progress(batch.tokens.num_tokens)
    models = {"final": final.info.identity, "checkpoint": checkpoint.info.identity}
    statistic.provenance = Provenance.of(models, sampler.identity)
    return statistic


def _load(model: MoEModel, checkpoint: str | Path | MoEModel, layers: Sequence[int]) -> MoEModel:
    """A checkpoint as a model, in the final model's dtype and on its device, no deeper than needed."""
    if not isinstance(checkpoint, str | Path):
        return checkpoint
    name, revision = source_of(str(checkpoint), model.name)
    spread = len(set(getattr(model.hf, "hf_device_map", {}).values())) > 1
    device = "auto" if spread else model.device
    return load_model(name, revision=revision, dtype=model.dtype, device=device, layers=layers)


def source_of(checkpoint: str, model_name: str) -> tuple[str, str | None]:
    """Name and revision for `load_model` of a checkpoint's name.

    An existing folder is a folder; `id@revision` is a hub id with its revision; a name with a slash is a path or a hub
    id; any other is a revision of the final model's repository, if that is on the hub.
    """
    path = Path(checkpoint).expanduser()
    if path.exists() or checkpoint.startswith((".", "~", "/")):
        return str(path), None
    if "@" in checkpoint:
        name, _, revision = checkpoint.partition("@")
        return name or model_name, revision
    is_hub_id = "/" in model_name and not Path(model_name).exists()
    if "/" in checkpoint or not is_hub_id:
        return checkpoint, None
    return model_name, checkpoint


def _name(checkpoint: str | Path | MoEModel) -> str:
    return str(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint.name


def _labels(checkpoints: Sequence[str]) -> list[str]:
    """The shortest endings of folders and hub ids that are different for all checkpoints."""
    full = [name.rpartition("@")[2] or name for name in checkpoints]
    parts = [[part for part in name.replace("\\", "/").split("/") if part] or [name] for name in full]
    for length in range(1, max(len(part) for part in parts) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return full


def _check_same_kind(final: MoEModel, checkpoint: MoEModel, name: str) -> None:
    """Refuses a checkpoint that cannot be an earlier state of the final model."""
    for what, theirs, ours in (
        ("a model of family", checkpoint.family, final.family),
        ("experts per layer:", checkpoint.num_experts, final.num_experts),
        ("experts per token:", checkpoint.num_experts_per_token, final.num_experts_per_token),
        ("MoE layers", list(checkpoint.checkpoint_layers), list(final.checkpoint_layers)),
        ("vocabulary of", checkpoint.vocab_size, final.vocab_size),
    ):
        if theirs != ours:
            raise ModelError(
                f"{name} is not an earlier state of {final.name}: {what} {theirs}",
                expected=f"{what} {ours}",
                remedy="name checkpoints of the same training run",
            )
    try:
        vocabulary = checkpoint.tokenizer.get_vocab()
    except ModelError:  # checkpoints of a training run often come without one
        return
    if vocabulary != final.tokenizer.get_vocab():
        raise ModelError(
            f"{name} is not an earlier state of {final.name}: its tokenizer has other tokens",
            remedy="name checkpoints of the same training run",
        )
