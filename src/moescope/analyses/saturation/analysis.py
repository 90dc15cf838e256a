"""Router saturation: how early in training the router's decisions were made.

It compares models, so one forward pass of one model can't feed it: it is a function, not an `Analysis`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr
from matplotlib.colors import Normalize, to_hex

from moescope.context import Context
from moescope.figures.experts import DASHES
from moescope.corpora import Sampler
from moescope.errors import ModelError, MoescopeWarning, UsageError
from moescope.figures import caption, charts, style, styled
from moescope.models import load_model
from moescope.statistics.saturation import RouterSaturation, RoutingPair

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from moescope.corpora import Corpus
    from moescope.models import MoEModel
    from moescope.records import Routing

RANKS = {"topk": "top-K: all selected experts", "top1": "top-1: first rank only"}


@dataclass(frozen=True)
class SaturationRun:
    """Saturation of checkpoints against the final model.

    Attributes:
        table: By `checkpoint, layer`: what `RouterSaturation.compute` gives; coordinate `share` of training, percent,
            NaN where it was not given.
        statistics: The counts behind it, by checkpoint.
        context: What was looked at; `model` is the final one.
        sampler: Which tokens were counted.
    """

    table: xr.Dataset
    statistics: dict[str, RouterSaturation]
    context: Context
    sampler: Sampler

    def frame(self) -> pd.DataFrame:
        """The table as rows, one per checkpoint and layer."""
        names = ["num_tokens", *(name for name in self.table.data_vars if name != "num_tokens")]
        frame = self.table[names].to_dataframe(dim_order=["checkpoint", "layer"]).reset_index()
        frame = frame.rename(columns={"share": "share_of_training_percent"})
        return frame[["checkpoint", "share_of_training_percent", "layer", *names]]

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Saturation over training (from two checkpoints on), a line a layer; over layers, a line a checkpoint."""
        if self.table.sizes["checkpoint"] > 1:
            yield "saturation_over_training", _over_training(self.table, self.context)
        yield "saturation_by_layer", _by_layer(self.table, self.context)


def saturation(
    model: MoEModel,
    checkpoints: Sequence[str | Path | MoEModel],
    corpus: Corpus,
    *,
    num_tokens: int = 100_000,
    layers: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    shares: Sequence[float] | None = None,
    seed: int = 0,
    sequence_length: int | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int], None] | None = None,
) -> SaturationRun:
    """Runs the same tokens through a model and each of its checkpoints, and counts where the routers agree.

    Two models are in memory at a time; the final one runs once for each checkpoint.

    Args:
        model: The final model.
        checkpoints: Earlier states of it: folders, hub ids (`id` or `id@revision`), revisions of the final model's
            repository, or loaded models.
        corpus: From `load_corpus`.
        num_tokens: Tokens to count.
        layers: MoE layers; None for all that are loaded.
        labels: What to call each checkpoint; by default its folder's or revision's name.
        shares: How much of training each had behind it, percent; only figures and tables use it.
        seed: Chooses documents and windows.
        sequence_length: Longest window of a document.
        batch_tokens: Padded tokens in a batch.
        progress: Called after each batch with the number of tokens counted in it.

    Returns:
        The run: `.table`, `.frame()`, `.figures()`, `.statistics`.

    Raises:
        UsageError: No checkpoint, a name twice, or as many labels or shares as there are not checkpoints.
        ModelError: A checkpoint can't be loaded, or is not an earlier state of this model.
    """
    if not checkpoints:
        raise UsageError("no checkpoint to compare with", remedy="name at least one with --checkpoint")
    names = [str(label) for label in labels] if labels is not None else _names(checkpoints)
    for what, given in (("labels", names), ("shares of training", shares)):
        if given is not None and len(given) != len(checkpoints):
            raise UsageError(f"{len(given)} {what} for {len(checkpoints)} checkpoints", expected="one for each")
    if len(set(names)) < len(names):
        raise UsageError(f"two checkpoints have one name: {', '.join(names)}", remedy="give each its own label")
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
    statistics = {}
    with warnings.catch_warnings():
        for name, checkpoint in zip(names, checkpoints, strict=True):
            earlier = _load(model, checkpoint, chosen)
            _check_same_kind(model, earlier, name)
            statistics[name] = _compare(model, earlier, sampler, chosen, progress)
            # The same tokens again: what is short of them was said the first time.
            warnings.simplefilter("ignore", MoescopeWarning)
    table = xr.concat([statistic.compute() for statistic in statistics.values()], xr.Variable("checkpoint", names))
    share_C = np.full(len(names), np.nan) if shares is None else np.asarray(shares, dtype=np.float64)
    table = table.assign_coords(share=("checkpoint", share_C, {"units": "%", "definition": "share of training"}))
    context = Context(
        model=model,
        layers=tuple(chosen),
        domains=corpus.domains,
        groups=corpus.groups,
        corpus_name=corpus.name,
        num_tokens=int(sampler.num_tokens_D.sum()),
        seed=seed,
        predictions=False,
    )
    return SaturationRun(table, statistics, context, sampler)


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
    return statistic


def _load(model: MoEModel, checkpoint: str | Path | MoEModel, layers: Sequence[int]) -> MoEModel:
    """A checkpoint as a model, in the final model's dtype and device, no deeper than needed."""
    if not isinstance(checkpoint, str | Path):
        return checkpoint
    name, revision = source_of(str(checkpoint), model.name)
    spread = len(set(getattr(model.hf, "hf_device_map", {}).values())) > 1
    device = "auto" if spread else model.device
    return load_model(name, revision=revision, dtype=model.dtype, device=device, layers=layers)


def source_of(checkpoint: str, model_name: str) -> tuple[str, str | None]:
    """Name and revision that `load_model` takes for a checkpoint as the reader wrote it.

    A folder that exists is a folder; `id@revision` is that; a path or a hub id has a slash; anything else is a revision
    of the final model's repository, if that came from the hub.
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


def _names(checkpoints: Sequence[str | Path | MoEModel]) -> list[str]:
    """The shortest endings of folders and hub ids that tell the checkpoints apart."""
    full = [str(c) if isinstance(c, str | Path) else c.name for c in checkpoints]
    full = [name.rpartition("@")[2] or name for name in full]
    parts = [[part for part in name.replace("\\", "/").split("/") if part] or [name] for name in full]
    for length in range(1, max(len(part) for part in parts) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return full


def _check_same_kind(final: MoEModel, checkpoint: MoEModel, name: str) -> None:
    """Refuses what can't be an earlier state of the final model."""
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


@styled
def _over_training(table: xr.Dataset, context: Context) -> Figure:
    layers = table["layer"].values
    known = bool(np.isfinite(table["share"].values).all())
    order = np.argsort(table["share"].values, kind="stable") if known else np.arange(table.sizes["checkpoint"])
    x = table["share"].values[order] if known else np.arange(table.sizes["checkpoint"], dtype=float)
    colours = _ramp(len(layers))
    fig, axes = style.figure("page", 2.6, 1, 2, sharey=True)
    for ax, (ranks, words) in zip(axes, RANKS.items(), strict=True):
        for position, colour in enumerate(colours):
            values = table[f"{ranks}_saturation"].values[order, position]
            ax.plot(x, values, marker="o", color=colour, label=f"layer {layers[position]}")
        _chance(ax, float(table[f"{ranks}_saturation_chance"][0, 0]))
        ax.set_ylim(0, 1)
        ax.grid(axis="y")
        if known:
            ax.set_xlim(left=0)
        else:
            ax.set_xticks(x, [str(name) for name in table["checkpoint"].values[order]], rotation=30, ha="right")
        charts.label(
            ax,
            x="share of training (%)" if known else "checkpoint",
            y="router saturation (share)" if ax is axes[0] else None,
            title=words,
        )
    _layer_key(fig, axes, layers, colours)
    caption(fig, context.caption, "share of a token's experts that are those of the final model")
    return fig


@styled
def _by_layer(table: xr.Dataset, context: Context) -> Figure:
    names = [str(name) for name in table["checkpoint"].values]
    few = len(names) <= len(style.COLOURS) - 1
    colours = list(style.COLOURS[: len(names)]) if few else _ramp(len(names))
    fig, axes = style.figure("page", 2.6, 1, 2, sharey=True)
    for ax, (ranks, words) in zip(axes, RANKS.items(), strict=True):
        values = table[f"{ranks}_saturation"].values
        charts.lines(
            ax, table["layer"].values, dict(zip(names, values, strict=True)),
            colours=dict(zip(names, colours, strict=True)), xlabel="layer", title=words, legend=False,
            ylabel="router saturation (share)" if ax is axes[0] else None, ylim=(0, 1),
        )  # fmt: skip
        _chance(ax, float(table[f"{ranks}_saturation_chance"][0, 0]))
    handles, words_of = axes[0].get_legend_handles_labels()
    fig.legend(handles, words_of, loc="outside upper center", ncols=min(len(words_of), 5))
    caption(fig, context.caption, "share of a token's experts that are those of the final model")
    return fig


def _chance(ax: Axes, value: float) -> None:
    ax.axhline(value, color=style.NEUTRAL, linewidth=0.8, linestyle=DASHES, label="chance", zorder=1)


def _ramp(count: int) -> list[str]:
    """Colours from pale to dark, none too pale to be seen on white."""
    import matplotlib

    colours = matplotlib.colormaps[style.SEQUENTIAL]
    return [to_hex(colours(0.3 + 0.7 * position / max(count - 1, 1))) for position in range(count)]


def _layer_key(fig: Figure, axes: np.ndarray, layers: np.ndarray, colours: Sequence[str]) -> None:
    """Which colour is which layer: a legend where they are few, a colour bar where they are many."""
    if len(layers) <= 6:
        handles, names = axes[0].get_legend_handles_labels()
        fig.legend(handles, names, loc="outside upper center", ncols=len(names))
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    scale = ScalarMappable(Normalize(-0.5, len(layers) - 0.5), ListedColormap(list(colours)))
    step = -(-len(layers) // 8)
    bar = fig.colorbar(scale, ax=axes, fraction=0.04, pad=0.02, label="layer", ticks=range(0, len(layers), step))
    bar.ax.set_yticklabels([str(layer) for layer in layers[::step]])
    bar.outline.set_visible(False)  # type: ignore[operator]
    axes[0].legend(*[part[-1:] for part in axes[0].get_legend_handles_labels()], loc="upper left")
