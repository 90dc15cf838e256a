"""One command for each question that a pass answers, made of its entry in the registry and its options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass
from inspect import Parameter as Argument
from inspect import Signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import docstring_parser
from cyclopts import Group, Parameter

from moescope.analyses import registry, words
from moescope.cli.capture import run_analyses
from moescope.cli.options import CaptureOptions, ModelOptions, TracedOptions, WeightsOptions, choice_of, is_choice

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis


def question(
    entry: registry.Entry,
    *,
    command: str | None = None,
    prepare: Callable[[CaptureOptions], CaptureOptions] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> Callable[..., None]:
    """A question's command: its own options first, then those of every run.

    Args:
        entry: The question.
        command: What the run is called; None: the question's name.
        prepare: Changes the options of the run before it starts.
        finish: Called with the complete folder, before its findings are printed.
    """

    def run(*, own: Any = None, options: Any = None) -> None:
        def asked() -> list[Analysis]:
            return [entry.load(entry.analysis)(**(vars(own) if own is not None else {}))]

        kind = TracedOptions if entry.from_trace else CaptureOptions
        given = kind(**vars(options)) if options is not None else kind()
        given = prepare(given) if prepare is not None else given
        run_analyses(asked, given, command=command or entry.name, finish=finish)

    run.__name__ = entry.name
    run.__doc__ = f"{entry.summary}\n\n{explanation(entry.name)}"
    common: type[ModelOptions] = CaptureOptions if entry.needs_text else WeightsOptions
    common = TracedOptions if entry.from_trace else common
    kinds: dict[str, Any] = {"options": common | None}
    options_class = entry.options_class()
    if options_class is not None:
        kinds = {"own": own_options(options_class, entry.title)} | kinds
    arguments = [Argument(name, Argument.KEYWORD_ONLY, default=None, annotation=kind) for name, kind in kinds.items()]
    run.__signature__ = Signature(arguments)  # type: ignore[attr-defined]
    run.__annotations__ = kinds
    return run


def own_options(options_class: type, title: str) -> Any:
    """A question's options as cyclopts reads them: flags and defaults, help from the attributes' docstrings."""
    group = Group(title, sort_key=-1)
    hints = get_type_hints(options_class)
    parsed = docstring_parser.parse_from_object(options_class)
    texts = {text.arg_name: text.description or "" for text in parsed.params}
    made = []
    for each in fields(options_class):
        kind = hints[each.name]
        parameter = Parameter(
            name=each.metadata.get("flags"),
            help=texts.get(each.name, ""),
            group=group,
            converter=choice_of(kind) if is_choice(kind) else None,
            show_default=None if each.default is not None else False,
        )
        default = {"default": each.default} if each.default is not MISSING else {}
        made.append((each.name, Annotated[kind, parameter], field(**default)))
    # cyclopts takes classes of the standard library's modules, where `make_dataclass` puts its own, for plain values.
    made_class = make_dataclass(options_class.__name__, made, kw_only=True, namespace={"__module__": __name__})
    required = any(each.default is MISSING for each in fields(options_class))
    return Annotated[made_class if required else made_class | None, Parameter(name="*")]


def explanation(name: str) -> str:
    """What a question's command writes, and what its numbers mean, for a help page."""
    lines = [
        "Runs the text through the model once and writes tables (.csv, .parquet), figures (.pdf, .png), the counts "
        "behind them and a manifest to the folder --out.",
        "A layer has E experts to choose from; its router selects K of them for each token.",
    ]
    lines += [f"**{term}**: {text}" for term, text in words.definitions(name).items()]
    return "\n\n".join(lines)
