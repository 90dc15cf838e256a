"""What `moescope intervene` prints: tokens with their experts, effects with controls, continuations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moescope.cli.terminal import print_line, show

if TYPE_CHECKING:
    from rich.table import Table

    from moescope.analyses.intervention.study import Study

MOST_TOKENS = 10


def print_study(study: Study) -> None:
    """Prints a study."""
    _show(_prompt(study))
    print_line(f"{_about_experts(study)}\n")
    for table in (_effects(study), _next_tokens(study), _later(study), _continuations(study)):
        if table is not None:
            _show(table)


def _show(table: Table) -> None:
    """Prints a table below its title, which may be wider."""
    from rich.text import Text

    show(Text(str(table.title), style="bold"))
    table.title = None
    show(table)
    print_line("")


def _table(title: str) -> Table:
    from rich.table import Table

    return Table(title=title, box=None, pad_edge=False)


def _prompt(study: Study) -> Table:
    prompt = study.prompt
    table = _table("Tokens, and the experts that each selects (weights)")
    table.add_column("", justify="right")
    table.add_column("token")
    for layer in prompt.weights:
        table.add_column(f"layer {layer}")
    for index, token in enumerate(prompt.tokens):
        cells = []
        for layer, weights_SK in prompt.weights.items():
            experts = zip(prompt.selected(layer, index), weights_SK[index].tolist(), strict=True)
            cells.append(", ".join(f"{expert} ({weight:.3f})" for expert, weight in experts))
        table.add_row(f"→ {index}" if index == study.target else str(index), token, *cells)
    return table


def _about_experts(study: Study) -> str:
    """How often the target and other text select the changed experts."""
    lines = []
    for layer, expert in study.targets:
        weight = study.prompt.weight(layer, expert, study.target)
        here = "not selected" if weight is None else f"weight {weight:.4f}"
        frequency = f"; selected by {100 * study.usage.frequency(layer, expert):.1f} % of tokens" if study.usage else ""
        lines.append(
            f"Expert {expert} of layer {layer} at token {study.target} ({study.target_token}): {here}{frequency}"
        )
    return "\n".join(lines)


def _effects(study: Study) -> Table:
    table = _table(f"KL(base ‖ changed) at token {study.target} ({study.target_token}), nats")
    table.add_column("change")
    for heading in ("KL", "control", "5-95 %", "controls at least as large", "active controls"):
        table.add_column(heading, justify="right")
    has_others = any(effect.other for effect in study.effects)
    if has_others:
        table.add_column("token's other experts", justify="right")
        table.add_column("range", justify="right")
    rows = study.kl[study.kl["position"] == study.target].to_dict("records")
    for row in rows:
        cells = [
            str(row["change"]),
            _number(row["kl"]),
            _number(row["kl_control_median"]),
            f"{_number(row['kl_control_q05'])} to {_number(row['kl_control_q95'])}",
            f"{100 * row['kl_control_share_as_large']:.0f} %",
            f"{row['num_controls_acting']} of {row['num_controls']}",
        ]
        if has_others:
            cells.append(_number(row["other_choices_kl_median"]))
            cells.append(f"{_number(row['other_choices_kl_low'])} to {_number(row['other_choices_kl_high'])}")
        table.add_row(*cells)
    return table


def _next_tokens(study: Study) -> Table:
    """Next tokens at the target, of the effect with the largest KL."""
    effect = max(study.effects, key=lambda each: float(each.changed.kl_P[0]))
    frame = study.next_tokens
    frame = frame[(frame["position"] == study.target) & (frame["change"] == effect.description)]
    table = _table(f"Next token at {study.target} ({study.target_token}): log-probability (rank), {effect.description}")
    table.add_column("next token")
    for heading in ("before", "after", "change", "control", "5-95 %"):
        table.add_column(heading, justify="right")
    for row in frame.head(MOST_TOKENS).to_dict("records"):
        table.add_row(
            str(row["next_token"]),
            f"{row['log_probability_before']:.3f} ({row['rank_before']})",
            f"{row['log_probability_after']:.3f} ({row['rank_after']})",
            f"{row['log_probability_change']:+.3f}",
            f"{row['log_probability_change_control_median']:+.3f}",
            f"{row['log_probability_change_control_q05']:+.3f} to {row['log_probability_change_control_q95']:+.3f}",
        )
    return table


def _later(study: Study) -> Table | None:
    """KL at every later position, a column for each effect, with the control's median."""
    if len(study.positions) == 1:
        return None
    table = _table("KL at later tokens (and the control's median)")
    table.add_column("", justify="right")
    table.add_column("token")
    for effect in study.effects:
        table.add_column(effect.description if effect.value is None else f"{effect.value:g}", justify="right")
    for position in list(study.positions)[1:]:
        rows = study.kl[study.kl["position"] == position].to_dict("records")
        cells = [f"{_number(row['kl'])} ({_number(row['kl_control_median'])})" for row in rows]
        table.add_row(str(position), study.prompt.tokens[position], *cells)
    return table


def _continuations(study: Study) -> Table | None:
    if not study.continuations:
        return None
    descriptions = {effect.value: effect.description for effect in study.effects}
    names = [
        "base" if each.run == "base" else descriptions[each.value] + (", control" if each.run == "control" else "")
        for each in study.continuations
    ]
    shares = [f"first {each.num_as_base} of {each.num_tokens} tokens as base" for each in study.continuations]
    texts = [_on_one_line(each.text) for each in study.continuations]
    table = _table("Continuations")
    if len(study.effects) == 1:
        for name in names:
            table.add_column(name, overflow="fold", ratio=1)
        table.add_row(*texts)
        table.add_row("", *shares[1:])
    else:
        table.add_column("")
        table.add_column("", overflow="fold")
        for name, share, text in zip(names, shares, texts, strict=True):
            table.add_row(name, text if name == "base" else f"{text} ({share})")
    return table


def _on_one_line(text: str) -> str:
    return "".join(character if character.isprintable() else "↵" if character == "\n" else "·" for character in text)


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.1e}"
