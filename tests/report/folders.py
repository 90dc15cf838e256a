"""Results folders made by hand, in the form that a run leaves behind."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from moescope.figures import charts
from moescope.figures import figure as styled_figure
from moescope.results import DomainSample, Manifest, ResultsFolder
from moescope.results.reading import Results


def manifest(**changes: Any) -> Manifest:
    """What was run: four experts, top-2, two layers, two domains."""
    facts: dict[str, Any] = {
        "command": "report",
        "moescope_version": "0.0.1",
        "torch_version": "2.9",
        "transformers_version": "5.10",
        "model": "toy",
        "revision": None,
        "family": "olmoe",
        "config_hash": "c0ffee",
        "dtype": "float32",
        "device": "cpu",
        "corpus": "shelf",
        "corpus_fingerprint": "files:beef",
        "domains": [
            DomainSample(name="law", group="formal", num_tokens=500, num_documents=12),
            DomainSample(name="verse", group="prose", num_tokens=500, num_documents=15),
        ],
        "num_tokens": 1000,
        "seed": 3,
        "layers": [1, 7],
        "num_experts": 4,
        "num_experts_per_token": 2,
        "analyses": ["entropy", "usage"],
        "options": {"num_tokens": 1200, "batch_tokens": 8192, "predictions": False},
        "pass_seconds": 2.0,
        "total_seconds": 2.5,
        "peak_memory_bytes": 600_000_000,
    }
    return Manifest(**(facts | changes))


def results(tables: Mapping[str, pd.DataFrame], **changes: Any) -> Results:
    """A folder in memory: these tables and no others."""
    return Results(Path("nowhere"), manifest(**changes), given=dict(tables))


def write(path: Path, tables: Mapping[str, pd.DataFrame], figures: tuple[str, ...] = (), **changes: Any) -> Path:
    """A folder on the disk, as `Run.write` leaves it."""
    with ResultsFolder(path) as folder:
        for name, frame in tables.items():
            folder.write_table(name, frame)
        for name in figures:
            figure, ax = styled_figure()
            charts.lines(ax, [0, 1], {name: [1, 0]}, xlabel="layer", ylabel="share")
            folder.write_figures([(name, figure)])
        folder.write_manifest(manifest(**changes))
    return path


def png(width: float, height: float, dpi: float) -> bytes:
    """A PNG of so many inches."""
    file = io.BytesIO()
    Figure(figsize=(width, height)).savefig(file, format="png", dpi=dpi)
    return file.getvalue()
