"""`moescope trace`: routing of a pass written as a trace; `moescope trace import`: recordings of other engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter, validators

from moescope.cli.capture import DEFAULT_FOLDER, command_line, load, may_download, open_corpus
from moescope.cli.options import CaptureOptions, ImportOptions
from moescope.cli.terminal import counting, print_line, print_note, quiet, working

if TYPE_CHECKING:
    from moescope import Trace

TRACE = Group("Trace", sort_key=-1)


def trace(
    *,
    options: CaptureOptions | None = None,
    with_text: Annotated[bool, Parameter(negative="", show_default=False, group=TRACE)] = False,
    generate: Annotated[int, Parameter(validator=validators.Number(gte=0), group=TRACE)] = 0,
    temperature: Annotated[float | None, Parameter(validator=validators.Number(gt=0), group=TRACE)] = None,
) -> None:
    """Record the experts selected for every token, to be asked later or by others.

    Runs the text through the model once and writes a trace to the folder --out: Parquet files with a row per token, and
    trace.json. `moescope usage --trace FOLDER` and the other questions about routing then need no model; docs/traces.md
    has the schema, and queries for DuckDB and polars. `moescope trace import` converts recordings of other engines.

    Args:
        options: Which model, text, layers, folder.
        with_text: Keep the documents' texts in the trace.
        generate: Let the model write so many tokens after each window, and record those too: the most probable next
            token each time, unless --temperature is given.
        temperature: Draw the tokens that --generate writes from the model's probabilities at this temperature, by
            --seed.
    """
    options = options or CaptureOptions()
    with quiet(verbose=options.verbose, downloads=may_download(options)):
        with working("starting"):
            import moescope
            from moescope.results import ResultsFolder

        folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / "trace", force=options.force)
        model = load(options, whole_depth=bool(options.predictions or generate))
        layers = model.check_layers(options.layers) if options.layers is not None else None
        corpus = open_corpus(options)
        with counting("recording", options.num_tokens) as progress:
            made = moescope.record_trace(
                model,
                corpus,
                folder,
                num_tokens=options.num_tokens,
                layers=layers,
                seed=options.seed,
                sequence_length=options.sequence_length,
                batch_tokens=options.batch_tokens,
                predictions=options.predictions,
                with_text=with_text,
                generate=generate,
                temperature=temperature,
                command_line=command_line(),
                progress=progress,
            )
        _say(made)


def import_(*paths: Path, options: ImportOptions | None = None) -> None:
    """Convert routing that another engine recorded to a trace.

    Reads what vLLM, SGLang, TensorRT-LLM, Megatron-core, llama.cpp and others write of routed experts; docs/traces.md
    says what each has to be asked for. What a recording can't answer is noted, and left out by the questions.

    Args:
        paths: The files, or a folder.
        options: What wrote them, the model, the folder.
    """
    options = options or ImportOptions()
    with quiet(verbose=options.verbose, downloads=options.model is not None):
        with working("starting"):
            import moescope
            from moescope.results import ResultsFolder

        folder = ResultsFolder(options.out, default=DEFAULT_FOLDER / "trace", force=options.force)
        with working("importing"):
            made = moescope.import_trace(
                list(paths),
                folder,
                format=options.format,
                model=options.model,
                tokenizer=options.tokenizer,
                domain=options.domain,
                domain_field=options.domain_field,
            )
        _say(made)


def _say(made: Trace) -> None:
    facts = made.facts
    for note in facts.notes:
        print_note(note)
    documents = sum(domain.num_documents for domain in facts.domains)
    print_line(
        f"{facts.num_tokens:,} tokens of {documents:,} documents in {len(facts.domains)} "
        f"domain{'s' if len(facts.domains) > 1 else ''}, {len(facts.layers)} MoE layers, "
        f"{facts.num_experts_per_token} of {facts.num_experts} experts per token"
    )
    print_line(f"Trace: {made.path}")


SUBCOMMANDS = {"import": import_}
