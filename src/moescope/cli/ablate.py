"""`moescope ablate`: how much worse the model predicts each domain without some experts of a layer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter, validators

from moescope.cli.capture import DEFAULT_FOLDER, command_line, load, may_download, open_corpus
from moescope.cli.options import CompareOptions
from moescope.cli.terminal import counting, note, quieten, say, show, working
from moescope.errors import UsageError

if TYPE_CHECKING:
    import pandas as pd

ABLATION = Group.create_ordered("Ablation")
MOST_ROWS = 30


def ablate(
    *,
    layer: Annotated[int, Parameter(group=ABLATION)],
    expert: Annotated[list[int], Parameter(name=["--expert", "--experts"], consume_multiple=(1, None), group=ABLATION)],
    controls: Annotated[int, Parameter(validator=validators.Number(gte=0), group=ABLATION)] = 20,
    options: CompareOptions | None = None,
) -> None:
    """Ablation: how much worse the model predicts each domain without some experts of a layer.

    Runs the text through the model with the experts' weights as they are and set to 0 (the others unchanged), and the
    same for random experts of the layer that are chosen about as often.

    **Δ loss**: the loss without the experts minus the loss with them, in nats per token, the same tokens on both sides,
    with a 95 % interval (bootstrap over documents).

    **bits per byte**: the loss in bits over the bytes of the text predicted.

    **control**: the mean Δ loss of the random experts, and the 5 to 95 % range of them. **excess**: Δ loss beyond it.

    Writes tables (.csv, .parquet), a figure (.pdf, .png) and a manifest to the folder --out.

    Args:
        layer: MoE layer, numbered from 0 as the checkpoint's decoder blocks.
        expert: Its expert, numbered from 0, or several to be ablated together.
        controls: Random experts (or sets of as many) to stand beside.
        options: Which model, which text, where to leave results.
    """
    options = options or CompareOptions()
    if options.layers is not None:
        raise UsageError("--layers was given to ablate", remedy="name the layer of the experts with --layer")
    quieten(verbose=options.verbose, downloads=may_download(options))
    started = time.perf_counter()
    with working("starting"):
        from moescope.analyses.ablation.analysis import ablate as measure
        from moescope.results import ResultsFolder
        from moescope.run import make_manifest

    folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / "ablate", force=options.force)
    model = load(options)
    corpus = open_corpus(options)
    with folder:
        with counting("ablating", options.num_tokens) as progress:
            run = measure(
                model,
                corpus,
                layer=layer,
                experts=expert,
                num_tokens=options.num_tokens,
                num_controls=controls,
                seed=options.seed,
                sequence_length=options.sequence_length,
                batch_tokens=options.batch_tokens,
                progress=progress,
            )
        with working("drawing figures"):
            frames = run.frames()
            for name, frame in frames.items():
                folder.write_table(name, frame)
            folder.write_figures(run.figures())
            settings: dict[str, Any] = {
                "num_tokens": options.num_tokens,
                "sequence_length": options.sequence_length,
                "batch_tokens": options.batch_tokens,
                "layer": layer,
                "experts": list(run.ablation.experts),
                "controls": [list(control.experts) for control in run.controls],
                "command_line": command_line(),
            }
            manifest = make_manifest(run.context, corpus, run.sampler, settings, ["ablate"], "ablate")
            manifest.wall_seconds = round(time.perf_counter() - started, 3)
            folder.write_manifest(manifest)
    if len(run.controls) < controls:
        note(f"{len(run.controls)} controls instead of {controls}: layer {layer} has no more")
    _print(frames["ablate"], run.words)
    say(f"\nResults: {folder.path}")


def _print(frame: pd.DataFrame, words: str) -> None:
    """Each domain's Δ loss, the largest first."""
    from rich.table import Table

    table = Table(title=f"Without {words}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("domain")
    heads = ("tokens", "chosen for", "Δ loss (nats/token)", "95 % interval", "control", "bits/byte", "without")
    for head in heads:
        table.add_column(head, justify="right")
    known = frame[frame["num_tokens"] > 0]
    order = known.iloc[1:].sort_values("delta_loss", ascending=False, kind="stable")
    for row in [*known.iloc[:1].to_dict("records"), *order.head(MOST_ROWS).to_dict("records")]:
        sure = row["ci_low"] == row["ci_low"]
        table.add_row(
            str(row["domain"]),
            f"{row['num_tokens']:,}",
            f"{100 * row['num_selected'] / row['num_tokens']:.1f} %",
            f"{row['delta_loss']:+.4f}",
            f"{row['ci_low']:+.4f} to {row['ci_high']:+.4f}" if sure else "too few documents",
            f"{row['control_delta_loss']:+.4f}" if row["num_controls"] else "none",
            f"{row['bits_per_byte']:.3f}",
            f"{row['bits_per_byte_ablated']:.3f}",
        )
    show(table)
