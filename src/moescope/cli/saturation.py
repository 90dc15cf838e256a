"""`moescope saturation`: how early in training the router's decisions were made."""

from __future__ import annotations

import time
from typing import Annotated

from cyclopts import Group, Parameter

from moescope.cli.capture import DEFAULT_FOLDER, load, may_download
from moescope.cli.options import CaptureOptions
from moescope.cli.terminal import counting, quieten, say, show, working

TRAINING = Group.create_ordered("Training run")


def saturation(
    *,
    checkpoint: Annotated[list[str], Parameter(consume_multiple=(1, None), group=TRAINING)],
    label: Annotated[list[str] | None, Parameter(consume_multiple=(1, None), group=TRAINING)] = None,
    share: Annotated[list[float] | None, Parameter(consume_multiple=(1, None), group=TRAINING)] = None,
    options: CaptureOptions | None = None,
) -> None:
    """Compare a model's routers with those of its earlier checkpoints.

    Router saturation: the share of a token's K selected experts that a checkpoint and the final model have in common,
    averaged over tokens; and the share of tokens whose first-ranked expert is the same (OLMoE, arXiv 2409.02060,
    Eq. 5).
    Chance: K/E and 1/E. Independent: the value if the two routers knew nothing of each other but kept their selection
    frequencies. Writes a table, figures, the counts behind them and a manifest to the folder --out.

    Args:
        checkpoint: Earlier states of --model, in the order of training: folders, Hugging Face ids (also id@revision),
            or revisions of --model's repository.
        label: What to call each checkpoint. Default: the folder's or the revision's name.
        share: How much of training each checkpoint had behind it, in percent; the figure then has a scale.
        options: Which final model, text, layers, folder.
    """
    options = options or CaptureOptions()
    quieten(verbose=options.verbose, downloads=may_download(options))
    started = time.perf_counter()
    with working("starting"):
        import moescope
        from moescope.analyses.saturation import saturation as compare
        from moescope.results import ResultsFolder
        from moescope.run import make_manifest

    folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / "saturation", force=options.force)
    model = load(options)
    with working("opening the corpus"):
        corpus = moescope.load_corpus(
            options.corpus,
            text_field=options.text_field,
            domain_field=options.domain_field,
            num_domains=options.num_domains,
        )
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
            for name, statistic in run.statistics.items():
                folder.write_state(
                    f"saturation_{''.join(c if c.isalnum() or c in '.-' else '_' for c in name)}", statistic
                )
            for name, figure in run.figures():
                folder.write_figure(name, figure)
            settings = {
                "num_tokens": options.num_tokens,
                "sequence_length": options.sequence_length,
                "batch_tokens": options.batch_tokens,
                "checkpoints": checkpoint,
                "labels": list(run.statistics),
                "shares": share,
            }
            manifest = make_manifest(run.context, corpus, run.sampler, settings, ["saturation"], "saturation")
            manifest.wall_seconds = round(time.perf_counter() - started, 3)
            folder.write_manifest(manifest)
    _print(frame)
    say(f"\nResults: {folder.path}")


def _print(frame: object) -> None:
    """Saturation per checkpoint, mean over layers."""
    import pandas as pd
    from rich.table import Table

    assert isinstance(frame, pd.DataFrame)
    table = Table(title="Router saturation, mean over layers", title_justify="left", title_style="bold", box=None)
    for column in ("checkpoint", "top-K", "independent", "chance", "top-1", "independent", "chance"):
        table.add_column(column, justify="left" if column == "checkpoint" else "right")
    for name, rows in frame.groupby("checkpoint", sort=False):
        cells = [
            f"{100 * rows[f'{ranks}_saturation{suffix}'].mean():.1f} %"
            for ranks in ("topk", "top1")
            for suffix in ("", "_independent", "_chance")
        ]
        table.add_row(str(name), *cells)
    show(table)
