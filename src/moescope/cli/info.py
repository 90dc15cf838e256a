"""`moescope info`: what kind of model this is, before anything is run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from moescope.cli.capture import load, may_download
from moescope.cli.options import AT_LEAST_ONE, OUTPUT, InfoOptions, to_count
from moescope.cli.terminal import print_line, quiet, show
from moescope.results.text import number, size

if TYPE_CHECKING:
    from moescope.models import MoEModel


STATE = Group("State of a pass", sort_key=-1)


def info(
    *,
    options: InfoOptions | None = None,
    num_domains: Annotated[int, Parameter(validator=AT_LEAST_ONE, group=STATE)] = 22,
    num_tokens: Annotated[int, Parameter(validator=AT_LEAST_ONE, converter=to_count, group=STATE)] = 100_000,
    as_json: Annotated[bool, Parameter(name="--json", negative="", show_default=False, group=OUTPUT)] = False,
) -> None:
    """Show a model's architecture and router: family, layers, experts, parameters, memory.

    Loads the layers asked for and probes them with a few tokens: what is printed was measured, not read off a name.
    Also prints what each question's counts and samples take in memory beside the model, for these layers.

    Args:
        options: Which model.
        num_domains: Domains of the text to reckon with.
        num_tokens: Tokens to reckon with; samples of fewer than they hold are smaller.
        as_json: Print JSON instead of a table; sizes in bytes.
    """
    options = options or InfoOptions()
    with quiet(verbose=options.verbose, downloads=may_download(options)):
        model = load(options)
        facts = gather(model) | {"state": state(model, options.layers, num_domains, num_tokens)}
        if as_json:
            print_line(json.dumps(facts, indent=2, ensure_ascii=False))
        else:
            _print(facts)


def gather(model: MoEModel) -> dict[str, Any]:
    """All facts as plain values: counts, bytes, names."""
    return {
        "model": model.name,
        "revision": model.revision,
        "family": model.family,
        "num_blocks": model.num_blocks,
        "moe_layers": list(model.checkpoint_layers),
        "loaded_layers": list(model.layers),
        "complete": model.complete,
        "num_experts": model.num_experts,
        "num_experts_per_token": model.num_experts_per_token,
        "num_shared_experts": model.num_shared_experts,
        "model_width": model.model_width,
        "expert_width": model.expert_width,
        "vocab_size": model.vocab_size,
        "max_positions": model.max_positions,
        "router": _plain(model.router),
        "num_parameters": model.num_parameters,
        "num_active_parameters": model.num_active_parameters,
        "num_loaded_parameters": model.num_loaded_parameters,
        "loaded_bytes": model.loaded_bytes,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "probe": _plain(model.probe),
    }


def state(model: MoEModel, layers: list[int] | None, num_domains: int, num_tokens: int) -> dict[str, Any]:
    """Bytes that a report's questions accumulate in a pass; what they share is once in the total."""
    from moescope.analyses import registry
    from moescope.analyses.sizes import state_bytes, total_bytes
    from moescope.context import Context

    context = Context(
        model=model.info,
        layers=tuple(model.check_layers(layers)),
        domains=tuple(f"domain {number}" for number in range(num_domains)),
        groups={},
        corpus_name="",
        num_tokens=num_tokens,
        seed=0,
        predictions=layers is None and model.complete,
    )
    sizes = state_bytes([registry.find(name, in_report=True) for name in registry.names()], context)
    return {
        "num_domains": num_domains,
        "num_tokens": num_tokens,
        "bytes": {name: sum(keys.values()) for name, keys in sizes.items()},
        "total_bytes": total_bytes(sizes),
    }


def _plain(record: Any) -> Any:
    """A dataclass as JSON values."""
    return json.loads(json.dumps(asdict(record), default=str))


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False, title_justify="left", title_style="bold")
    table.title = facts["model"]
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in _rows(facts):
        table.add_row(name, value)
    show(table)


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What the table shows, in words."""
    rows = [
        ("family", facts["family"]),
        ("revision", facts["revision"] or ""),
        ("blocks", f"{facts['num_blocks']}, of which with routed experts: {_ranges(facts['moe_layers'])}"),
        ("routed experts", f"{facts['num_experts']} a layer, {facts['num_experts_per_token']} selected for each token"),
        ("shared experts", str(facts["num_shared_experts"] or "none")),
        ("widths", f"model {facts['model_width']:,}, expert {facts['expert_width']:,}"),
        ("vocabulary", f"{facts['vocab_size']:,} tokens"),
        ("longest context", f"{facts['max_positions']:,} tokens" if facts["max_positions"] else "unbounded"),
        ("router", facts["router"]["rule"]),
        ("parameters", f"{_count(facts['num_parameters'])}, {_count(facts['num_active_parameters'])} active per token"),
        (
            "loaded",
            f"{'the whole model' if facts['complete'] else 'down to layer ' + str(facts['loaded_layers'][-1])}: "
            f"{_count(facts['num_loaded_parameters'])} parameters, {size(facts['loaded_bytes'])} of memory "
            f"in {facts['dtype']} on {facts['device']}",
        ),
        ("probe", _probe_in_words(facts["probe"])),
        ("state of a pass", _state_in_words(facts["state"])),
    ]
    return [(name, text) for name, text in rows if text]


def _state_in_words(state: dict[str, Any]) -> str:
    by_size = sorted(state["bytes"].items(), key=lambda item: -item[1])
    each = ", ".join(f"{name} {size(num_bytes)}" for name, num_bytes in by_size if num_bytes)
    return (
        f"{size(state['total_bytes'])} for all questions of a report, {state['num_domains']:,} domains and "
        f"{state['num_tokens']:,} tokens; each with what it shares: {each}"
    )


def _probe_in_words(probe: dict[str, Any]) -> str:
    found = {what: number(probe[f"{what}_error"], 2) for what in ("weight", "selection", "output")}
    errors = ", ".join(f"{what} {error}" for what, error in found.items())
    return (
        f"{probe['num_tokens']} tokens; every loaded layer fired; listening changes nothing, bit for bit; largest "
        f"relative differences from the rule and from {probe['stock_implementation']}: {errors}"
    )


def _ranges(layers: list[int]) -> str:
    """`[0, 1, 2, 5]` as `0-2, 5`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _count(count: int) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return str(count)
