"""`moescope saturation`: how early in training the router's decisions were made."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from moescope.cli.capture import DEFAULT_FOLDER, command_line, load, may_download, open_corpus
from moescope.cli.options import CompareOptions
from moescope.cli.terminal import counting, quieten, say, show, working

if TYPE_CHECKING:
    import pandas as pd

TRAINING = Group.create_ordered("Training run")


def saturation(
    *,
    checkpoint: Annotated[list[str], Parameter(consume_multiple=(1, None), group=TRAINING)],
    label: Annotated[list[str] | None, Parameter(consume_multiple=(1, None), group=TRAINING)] = None,
    share: Annotated[list[float] | None, Parameter(consume_multiple=(1, None), group=TRAINING)] = None,
    options: CompareOptions | None = None,
) -> None:
    """Router saturation: how early in training the router's decisions were made.

    Runs the same text through --model and each earlier checkpoint of it, and writes a table (.csv, .parquet), figures
    (.pdf, .png), the counts behind them and a manifest to the folder --out.

    **Router saturation**: of a token's K selected experts, the share that the checkpoint and the final model have in
    common, averaged over tokens; and the share of tokens whose first-ranked expert is the same (OLMoE, arXiv
    2409.02060, Eq. 5).

    **Chance**: K/E and 1/E, for two routers that choose evenly and know nothing of each other. **Independent**: the
    same for two routers with these selection frequencies.

    Args:
        checkpoint: Earlier states of --model, in the order of training: folders, Hugging Face ids (also id@revision),
            or revisions of --model's repository.
        label: What to call each checkpoint. Default: the folder's or the revision's name.
        share: How much of training each checkpoint had behind it, in percent: the figure's horizontal axis.
        options: Which final model, which text, where to leave results.
    """
    options = options or CompareOptions()
    quieten(verbose=options.verbose, downloads=may_download(options))
    started = time.perf_counter()
    with working("starting"):
        from moescope.analyses.saturation.analysis import saturation as compare
        from moescope.results import ResultsFolder
        from moescope.run import make_manifest

    folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / "saturation", force=options.force)
    model = load(options)
    corpus = open_corpus(options)
    with folder:
        with counting("comparing", options.num_tokens * len(checkpoint)) as progress:
            run = compare(
                model,
                checkpoint,
                corpus,
                num_tokens=options.num_tokens,
                layers=options.layers,
                labels=label,
                shares=share,
                seed=options.seed,
                sequence_length=options.sequence_length,
                batch_tokens=options.batch_tokens,
                progress=progress,
            )
        with working("drawing figures"):
            frame = run.frame()
            folder.write_table("saturation", frame)
            for place, statistic in enumerate(run.statistics.values()):
                folder.write_state(f"saturation_{place}", statistic)
            folder.write_figures(run.figures())
            settings: dict[str, Any] = {
                "num_tokens": options.num_tokens,
                "sequence_length": options.sequence_length,
                "batch_tokens": options.batch_tokens,
                "checkpoints": checkpoint,
                "labels": list(run.statistics),
                "shares": share,
                "command_line": command_line(),
            }
            manifest = make_manifest(run.context, corpus, run.sampler, settings, ["saturation"], "saturation")
            manifest.wall_seconds = round(time.perf_counter() - started, 3)
            folder.write_manifest(manifest)
    _print(frame)
    say(f"\nResults: {folder.path}")


def _print(frame: pd.DataFrame) -> None:
    """Saturation of each checkpoint, mean over layers."""
    from rich.table import Table

    table = Table(title="Router saturation, mean over layers", title_justify="left", title_style="bold", box=None)
    table.add_column("checkpoint")
    columns = {
        f"{ranks}_saturation{suffix}": f"{words} {kind}".strip()
        for ranks, words in (("topk", "top-K"), ("top1", "top-1"))
        for suffix, kind in (("", ""), ("_independent", "independent"), ("_chance", "chance"))
    }
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for name, rows in frame.groupby("checkpoint", sort=False):
        table.add_row(str(name), *(f"{100 * rows[column].mean():.1f} %" for column in columns))
    show(table)
