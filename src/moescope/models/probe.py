"""A tiny forward pass, at load, that proves a model can be looked into, and finds out how its routers decide.

Nothing is taken from a table of families: which module gives the logits, and by which rule ids and weights follow
from them, is found by trying (see `moescope.models.routers`) and refused where nothing reproduces them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from moescope.errors import ModelError
from moescope.models.experts import SortedOutputs, combine, compute_sorted
from moescope.models.moe import MoEModel
from moescope.models.patching import hook_scope
from moescope.models.routers import Fit, find_rule
from moescope.models.seam import IMPLEMENTATION, ExpertCall, LayerSeam, at_rest, attach, hooked, seam_of

_LENGTH = 16
_UNSUPPORTED = "docs/families.md lists the families that can be looked into"


@dataclass(frozen=True)
class ProbeReport:
    """What the probe found; that it exists means that everything was as it should be.

    Attributes:
        num_tokens: Tokens it ran.
        layers: MoE layers that fired, each once.
        router_module: Name, inside its block, of the module that gives the logits.
        stock_implementation: transformers' implementation that does the experts' work.
        weight_error: Largest difference of an applied weight from the rule's, relative to its token's largest.
        selection_error: Largest amount by which an expert left out exceeds one taken; ties are 0.
        output_error: Largest difference between the experts' combined outputs, computed by us, and the stock ones,
            relative to the largest. Where we only look, the pass was found equal bit for bit.
        rules: How the routers decide: rule in words -> layers.
    """

    num_tokens: int
    layers: tuple[int, ...]
    router_module: str
    stock_implementation: str
    weight_error: float
    selection_error: float
    output_error: float
    rules: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass
class _Seen:
    """What the stock pass showed of one layer."""

    calls: int = 0
    hidden_NM: Tensor | None = None
    expert_ids_NK: Tensor | None = None
    weights_NK: Tensor | None = None
    output_NM: Tensor | None = None
    tensors: dict[tuple[str, int | None], Tensor] = field(default_factory=dict)


@dataclass
class _Watcher:
    """Listens to one layer and keeps what it saw."""

    seen: dict[int, ExpertCall]
    wants_outputs: bool = False

    def __call__(self, call: ExpertCall, outputs: SortedOutputs | None) -> None:
        self.seen[call.layer] = call


def probe(model: MoEModel) -> None:
    """Proves that a model can be looked into and gives it its seams, rules and report.

    Other threads may be using it meanwhile; what this one has in force on it is left out.

    Raises:
        ModelError: Something is not as it should be: what was found, what was expected, what to do.
    """
    there = [seam_of(model.layout.experts_module(model.hf, layer)) for layer in model.layers]
    with torch.inference_mode(), at_rest(seam for seam in there if seam is not None):
        _probe(model)


def _probe(model: MoEModel) -> None:
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(0, model.vocab_size, (2, _LENGTH), generator=generator).to(model.device)
    ids_BS[1, : _LENGTH // 2] = ids_BS[0, : _LENGTH // 2]
    stock = _stock(model)
    seen = {layer: _Seen() for layer in model.layers}
    last_BSM = _run(model, ids_BS, seen)
    _check_causal(model, last_BSM)

    fits: dict[int, Fit] = {}
    for layer, what in seen.items():
        _check_call(model, layer, what)
        name, index, fits[layer] = _find_router(model, layer, what)
        block = model.layout.moe_block(model.hf, layer)
        seam = LayerSeam(layer, model.layout.experts_module(model.hf, layer), block.get_submodule(name), index)
        seam.stock = stock
        model.seams[layer] = attach(seam)
        model.rules[layer] = fits[layer].rule
    if model.hf.get_experts_implementation()[""] != IMPLEMENTATION:
        model.hf.set_experts_implementation(IMPLEMENTATION)
    _check_listening(model, ids_BS, last_BSM, seen)
    rules: dict[str, tuple[int, ...]] = {}
    for layer, fit in fits.items():
        rule = fit.rule.facts().rule
        rules[rule] = (*rules.get(rule, ()), layer)
    model.since_probe.remember(
        model.hf, model.layout, model.seams.values(), model.num_experts_per_token, partial(probe, model)
    )
    model.probe = ProbeReport(
        num_tokens=ids_BS.numel(),
        layers=tuple(seen),
        router_module=name,
        stock_implementation=stock,
        weight_error=max(fit.weight_error for fit in fits.values()),
        selection_error=max(fit.selection_error for fit in fits.values()),
        output_error=max(_output_error(model, layer, what) for layer, what in seen.items()),
        rules=rules,
    )


def _stock(model: MoEModel) -> str:
    """Transformers' implementation of the experts; of a model that was looked into before the one we hand on to."""
    implementation = str(model.hf.get_experts_implementation()[""] or "eager")
    if implementation != IMPLEMENTATION:
        return implementation
    seam = seam_of(model.layout.experts_module(model.hf, model.layers[0]))
    return seam.stock if seam is not None else "grouped_mm"


def _run(model: MoEModel, ids_BS: Tensor, seen: dict[int, _Seen] | None = None) -> Tensor:
    """One pass; returns what comes out of the deepest loaded block, and fills `seen`."""
    out: list[Tensor] = []

    def on_last_block(module: nn.Module, inputs: Any, output: Any) -> None:
        out.append(output if isinstance(output, Tensor) else output[0])

    with ExitStack() as stack:
        own = stack.enter_context(hook_scope())

        def watch(module: nn.Module, hook: Callable[..., None]) -> None:
            stack.callback(module.register_forward_hook(own(hook)).remove)

        for layer, what in (seen or {}).items():
            watch(model.layout.experts_module(model.hf, layer), _on_experts(what))
            for name, module in model.layout.router_candidates(model.hf, layer).items():
                watch(module, _on_candidate(what, name, model.num_experts))
        watch(model.blocks[-1], on_last_block)
        model.last_hidden(ids_BS)
    return out[0]


def _check_causal(model: MoEModel, last_BSM: Tensor) -> None:
    """Two texts that begin alike have the same states until they part: no token sees what comes after it."""
    if not bool(last_BSM.isfinite().all()):
        raise ModelError(
            f"hidden states of {model.name} ({model.family}) are not finite",
            expected="numbers after every block",
            remedy="use a wider dtype, such as bfloat16 or float32; if `layers` were given, load the whole model",
        )
    shared_2sM = last_BSM[:, : _LENGTH // 2].float()
    difference = float((shared_2sM[0] - shared_2sM[1]).abs().max() / shared_2sM.abs().max().clamp_min(1e-20))
    if not difference < 0.05:
        raise ModelError(
            f"in {model.name} ({model.family}) a token's state depends on tokens after it (by {difference:.0%})",
            expected="a causal decoder, in which padding on the right changes nothing before it",
            remedy=_UNSUPPORTED,
        )


def _on_experts(what: _Seen) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        what.calls += 1
        what.hidden_NM, what.expert_ids_NK, what.weights_NK = (*inputs, None, None, None)[:3]
        what.output_NM = output

    return hook


def _on_candidate(what: _Seen, name: str, num_experts: int) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        for index, item in [(None, output)] if isinstance(output, Tensor) else enumerate(output or ()):
            if isinstance(item, Tensor) and item.is_floating_point() and item.shape[-1:] == (num_experts,):
                what.tensors[name, index] = item.reshape(-1, num_experts)

    return hook


def _check_call(model: MoEModel, layer: int, what: _Seen) -> None:
    """The layer fired once, with ids and weights of the right shapes."""
    where = f"layer {layer} of {model.name} ({model.family})"
    if what.calls != 1:
        raise ModelError(
            f"the experts of {where} were called {what.calls} times in one forward pass",
            expected="one call of each MoE layer, through transformers' experts interface",
            remedy=f"quantized experts may go past it: load unquantized weights; {_UNSUPPORTED}",
        )
    tensors = (what.hidden_NM, what.expert_ids_NK, what.weights_NK)
    num_tokens, per_token = 2 * _LENGTH, model.num_experts_per_token
    shapes = [tuple(tensor.shape) if tensor is not None else None for tensor in tensors]
    hidden, ids, weights = tensors
    if hidden is None or ids is None or weights is None or shapes[1:] != [(num_tokens, per_token)] * 2:
        raise ModelError(
            f"the experts of {where} were given hidden states, ids, weights of shapes {shapes}",
            expected=f"({num_tokens}, width), ({num_tokens}, {per_token}), ({num_tokens}, {per_token})",
            remedy=_UNSUPPORTED,
        )
    sorted_NK = ids.sort(dim=1).values
    if sorted_NK.min() < 0 or sorted_NK.max() >= model.num_experts or (sorted_NK[:, 1:] == sorted_NK[:, :-1]).any():
        raise ModelError(
            f"the router of {where} chose experts {sorted_NK.min()} to {sorted_NK.max()}, or one of them twice",
            expected=f"{per_token} different experts of {model.num_experts} for each token",
            remedy=_UNSUPPORTED,
        )


def _find_router(model: MoEModel, layer: int, what: _Seen) -> tuple[str, int | None, Fit]:
    """Which module's output is the logits that ids and weights follow from, and by which rule."""
    assert what.expert_ids_NK is not None
    assert what.weights_NK is not None
    where = f"layer {layer} of {model.name} ({model.family})"
    block = model.layout.moe_block(model.hf, layer)
    outer_first = list(model.layout.router_candidates(model.hf, layer))
    candidates = {
        key: what.tensors[key]
        for key in sorted(what.tensors, key=lambda key: (outer_first.index(key[0]), key[1] or 0))
        if what.tensors[key].shape[0] == what.expert_ids_NK.shape[0]
    }
    tolerance = 1e-4 if what.weights_NK.dtype == torch.float32 and model.dtype == torch.float32 else 3e-2
    tried: list[str] = []
    probabilities: list[str] = []
    for (name, index), logits_NE in candidates.items():
        if not bool(logits_NE.isfinite().all()):
            tried.append(f"{name}: not finite")
        elif are_probabilities(logits_NE):
            probabilities.append(name)
        else:
            fit = find_rule(logits_NE, what.expert_ids_NK, what.weights_NK, block.get_submodule(name), block)
            if fit.weight_error <= tolerance and fit.selection_error <= tolerance:
                return name, index, fit
            tried.append(
                f"{name}: weights differ by {fit.weight_error:.1e} from '{fit.rule.facts().rule}', "
                f"selection by {fit.selection_error:.1e}"
            )
    if probabilities:
        raise ModelError(
            f"the router of {where} returns probabilities ({', '.join(probabilities)}) instead of logits",
            expected="logits: values not bound to 0..1 that do not sum to 1",
            remedy="update transformers: versions 5.0 to 5.5 returned probabilities under that name",
        )
    why = "; ".join(tried) or f"no module beside the experts outputs {model.num_experts} numbers per token"
    raise ModelError(
        f"can't tell how the router of {where} decides: {why}",
        expected="logits of which the applied weights and the selected experts follow by a known rule",
        remedy=_UNSUPPORTED,
    )


def are_probabilities(logits_TE: Tensor) -> bool:
    """Whether "logits" lie in 0..1 and sum to 1 on every token: then they are no logits."""
    sums_T = logits_TE.float().sum(-1)
    return bool(((logits_TE >= 0) & (logits_TE <= 1)).all() and ((sums_T - 1).abs() < 1e-2).all())


def _check_listening(model: MoEModel, ids_BS: Tensor, last: Tensor, seen: dict[int, _Seen]) -> None:
    """A pass through the seam, listened to, is equal bit for bit, and shows what the stock pass showed."""
    calls: dict[int, ExpertCall] = {}
    with hooked(model.seams):
        for seam in model.seams.values():
            seam.listener = _Watcher(calls)
        ours = _run(model, ids_BS)
    same = torch.equal(ours, last) and all(
        torch.equal(calls[layer].expert_ids_NK, what.expert_ids_NK)  # type: ignore[arg-type]
        and torch.equal(calls[layer].weights_NK, what.weights_NK)  # type: ignore[arg-type]
        and calls[layer].logits_NE is not None
        for layer, what in seen.items()
        if layer in calls
    )
    if not same or len(calls) != len(seen):
        difference = (ours.float() - last.float()).abs().max()
        raise ModelError(
            f"listening to {model.name} changes what it computes, by up to {difference:.1e} "
            f"({len(calls)} of {len(seen)} layers were heard)",
            expected="the same hidden states, bit for bit, from every layer",
            remedy="the model is not deterministic, or patched: load it afresh, on one device",
        )


def _output_error(model: MoEModel, layer: int, what: _Seen) -> float:
    """How far the experts' outputs, computed one expert at a time and combined, are from the stock ones."""
    assert what.hidden_NM is not None
    assert what.expert_ids_NK is not None
    assert what.weights_NK is not None
    assert what.output_NM is not None
    experts = model.experts(layer)
    ours_NM = combine(compute_sorted(experts, what.hidden_NM, what.expert_ids_NK), what.weights_NK, what.hidden_NM)
    difference = (ours_NM.float() - what.output_NM.float()).abs().max()
    error = float(difference / what.output_NM.float().abs().max().clamp_min(1e-20))
    allowed = 1e-5 if what.output_NM.dtype == torch.float32 else 3e-2
    if not error <= allowed:
        raise ModelError(
            f"the expert outputs of layer {layer} of {model.name} ({model.family}), computed expert by expert, differ "
            f"by {error:.1e} from transformers' own",
            expected=f"a relative difference of at most {allowed:.0e}",
            remedy=_UNSUPPORTED,
        )
    return error
