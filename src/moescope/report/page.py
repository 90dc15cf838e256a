"""A results folder as an HTML page: beside its figures, or as one file that stands alone."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.analyses import words
from moescope.analyses.finding import chance_of, facts, find
from moescope.report.keynumbers import per_layer
from moescope.report.sections import sections
from moescope.report.specialists import specialists
from moescope.report.views import Cell, TableView
from moescope.results.places import expanded
from moescope.results.reading import Results
from moescope.results.text import number

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = "index.html"
SINGLE_FILE = "report.html"
ASSETS = "assets"
WINDOW = "Effective window (tokens of a document)"
SPARK_WIDTH, SPARK_HEIGHT, SPARK_MARGIN = 220, 40, 4


def render(folder: str | Path, *, single_file: bool = False) -> str:
    """The page about a results folder. Nothing but the folder is read, and the page asks for nothing from elsewhere.

    Args:
        folder: Where the results are.
        single_file: The figures become a part of the page; else it shows the folder's, when they are scrolled to.

    Raises:
        ResultsError: It is no results folder.
    """
    # jinja2 here: the findings alone need no templates.
    import jinja2

    results = Results.read(folder)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False)
    environment.globals |= {"spark": spark, "heading": words.title, "chance_of": chance_of}
    environment.filters["tied"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    assets = resources.files("moescope.report") / ASSETS
    template = environment.from_string((assets / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title(results),
        lede=lede(results),
        manifest=results.manifest,
        numbers=per_layer(results),
        findings=find(results),
        facts=facts(results),
        specialists=specialists(results),
        sections=sections(results, single_file=single_file),
        single_file=single_file,
        reproduction=reproduction(results),
        css=(assets / "page.css").read_text(encoding="utf-8"),
        script=(assets / "page.js").read_text(encoding="utf-8"),
    )


def write(folder: str | Path, *, single_file: bool = False) -> Path:
    """Writes (or rewrites) the page of a results folder that is already there.

    Args:
        folder: Where the results are.
        single_file: Write `report.html` too, which is the same with all figures inside and needs nothing beside it.

    Returns:
        The path of `index.html`, or of `report.html` where that was asked for.

    Raises:
        ResultsError: It is no results folder.
    """
    folder = expanded(folder)
    target = _put(folder, PAGE, render(folder))
    return _put(folder, SINGLE_FILE, render(folder, single_file=True)) if single_file else target


def _put(folder: Path, name: str, page: str) -> Path:
    target, partial = folder / name, folder / f".{name}.partial"
    # Made anew: what lies there may be a link to something else.
    partial.unlink(missing_ok=True)
    with partial.open("x", encoding="utf-8") as file:
        file.write(page)
    partial.replace(target)
    return target


def title(results: Results) -> str:
    """The page's heading."""
    manifest = results.manifest
    experts = f"{manifest.num_experts * len(manifest.layers):,} experts of {manifest.model}"
    kinds = len(manifest.domains)
    if manifest.corpus is None:
        return f"Weights of {experts}"
    return f"{experts}, {kinds} domains" if kinds > 1 else f"{experts} on {manifest.corpus}"


def lede(results: Results) -> str:
    """The sample, in a sentence."""
    manifest = results.manifest
    documents = sum(domain.num_documents for domain in manifest.domains)
    if manifest.corpus is None:
        return f"Their weights alone, of {results.layers_in_words}: no text was read."
    return (
        f"{manifest.num_tokens:,} tokens from {documents:,} documents{_window(results)} of the corpus "
        f"“{manifest.corpus}”, seen at "
        f"{results.layers_in_words}. At each, the router selects {manifest.num_experts_per_token} of "
        f"{manifest.num_experts} experts for every token."
    )


def _window(results: Results) -> str:
    """How much was taken of a document at most."""
    window = results.manifest.options.get("window")
    return f" (at most {window:,} tokens of each)" if isinstance(window, int) else ""


@dataclass(frozen=True)
class Spark:
    """A line over layers in a small picture's own coordinates."""

    width: int
    height: int
    points: str
    dots: list[tuple[float, float]]


def spark(values: Sequence[float]) -> Spark | None:
    """A small picture of a series, from its lowest to its highest value; None where there is nothing to compare."""
    known = [(position, value) for position, value in enumerate(values) if not math.isnan(value)]
    if len(known) < 2:
        return None
    low, high = min(value for _, value in known), max(value for _, value in known)
    across = (SPARK_WIDTH - 2 * SPARK_MARGIN) / max(1, len(values) - 1)
    up = (SPARK_HEIGHT - 2 * SPARK_MARGIN) / ((high - low) or 1.0)
    dots = [
        (round(SPARK_MARGIN + position * across, 1), round(SPARK_HEIGHT - SPARK_MARGIN - (value - low) * up, 1))
        for position, value in known
    ]
    return Spark(SPARK_WIDTH, SPARK_HEIGHT, " ".join(f"{x},{y}" for x, y in dots), dots)


def reproduction(results: Results) -> dict[str, Any]:
    """What it takes to get the same numbers again."""
    manifest = results.manifest
    facts = [
        ("Model", manifest.model),
        ("Revision", manifest.revision or "–"),
        ("Family", manifest.family),
        ("Configuration hash", manifest.config_hash),
        ("Computed in", f"{manifest.dtype} on {manifest.device}"),
        ("Layers", ", ".join(map(str, manifest.layers))),
        ("Corpus", manifest.corpus or "none"),
        ("Corpus fingerprint", manifest.corpus_fingerprint or "–"),
        ("Seed", str(manifest.seed)),
        *((_option(name), _said(value)) for name, value in manifest.options.items()),
        ("moescope", manifest.moescope_version),
        ("torch", manifest.torch_version),
        ("transformers", manifest.transformers_version),
        ("Time of the pass", f"{number(manifest.pass_seconds)} s"),
        ("Time in all", f"{number(manifest.total_seconds)} s"),
        ("Peak memory", f"{manifest.peak_memory_bytes / 1e9:.2f} GB"),
    ]
    return {
        "command": command_line(results),
        "facts": [(name, value) for name, value in facts if name != "Command line"],
        "notes": [*manifest.failures, *manifest.notes],
        "domains": _domains(results),
    }


def command_line(results: Results) -> str:
    """The command that was given, or the nearest that the manifest knows of."""
    manifest = results.manifest
    if said := manifest.options.get("command_line"):
        return str(said)
    words = ["moescope", manifest.command, "--model", manifest.model]
    words += ["--revision", manifest.revision] if manifest.revision else []
    if manifest.corpus is not None:
        num_tokens = manifest.options.get("num_tokens", manifest.num_tokens)
        words += ["--corpus", manifest.corpus, "--num-tokens", str(num_tokens)]
    words += ["--layers", *map(str, manifest.layers), "--seed", str(manifest.seed), "--dtype", manifest.dtype]
    return shlex.join(words)


def _option(name: str) -> str:
    return WINDOW if name == "window" else name.replace("_", " ").capitalize()


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')}: {_said(of)}" for name, of in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "default" if value is None else number(value) if isinstance(value, int | float) else str(value)


def _domains(results: Results) -> TableView:
    rows = [
        [
            Cell(domain.label or domain.name, domain.label or domain.name),
            Cell(domain.group or "", domain.group or ""),
            Cell(f"{domain.num_tokens:,}", str(domain.num_tokens)),
            Cell(f"{domain.num_documents:,}", str(domain.num_documents)),
        ]
        for domain in results.manifest.domains
    ]
    columns = ["domain", "group", "num_tokens", "num_documents"]
    return TableView("domains", "manifest.json", len(rows), columns, [False, False, True, True], rows)
