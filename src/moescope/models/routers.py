"""How a family's router decides, found by trying rules on what the router really did, not by a table of names.

A rule has three parts. *Scoring* turns logits into scores: softmax over all E experts, or a sigmoid of each.
*Selection* takes the K experts with the largest selection value: the score, or score plus a correction bias, within
the best groups where the family limits selection to groups. *Weighing* makes the applied weights of the selected
scores: as they are or divided by their sum, times a scaling factor. Softmax over the K selected logits alone (gpt_oss,
granitemoe) is softmax over all, divided by the sum of the selected.

`find_rule` tries these on the logits, ids and weights of a probe and returns the rule that reproduces them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_BIAS_NAME = re.compile(r"correction_bias|expert_bias|balancing_bias|score_bias")
_NUM_GROUPS = ("num_group", "n_group", "num_expert_group")
_GROUPS_SELECTED = ("topk_group", "num_selected_groups")


@dataclass(frozen=True)
class RouterFacts:
    """How the router of a model decides.

    Attributes:
        scoring: "softmax" over all experts, or "sigmoid" of each logit by itself.
        selects_by: What the K largest are taken of, in words.
        renormalizes: Whether the selected scores are divided by their sum.
        scaling: Factor on every applied weight.
        bias_corrected: Whether a bias enters the selection but not the weights.
        num_groups: Groups of experts that selection is limited by; 1 where it is not.
        num_groups_selected: How many of them a token may choose from.
        rule: All of it in one sentence.
    """

    scoring: str
    selects_by: str
    renormalizes: bool
    scaling: float
    bias_corrected: bool = False
    num_groups: int = 1
    num_groups_selected: int = 1
    rule: str = ""


@dataclass(frozen=True)
class RouterRule:
    """One layer's rule, able to route by itself: `route(logits)` is what the family's router would decide.

    Attributes:
        scoring: "softmax" or "sigmoid".
        num_selected: K.
        renormalizes: Divide the selected scores by their sum.
        scaling: Factor on the weights; `expert_scaling_E` a factor of each expert's own.
        selection: "score", or "logit" where the bias is added to logits (they rank alike without one).
        bias_E: Correction bias added for the selection, None where there is none.
        num_groups, num_groups_selected: Group-limited selection; `group_score` is "max" or "top2" of a group's values.
        threshold: For the sparse mixer (phimoe): experts within `2 * threshold` of the largest logit, relative to it,
            share each softmax; None for all others.
    """

    scoring: str
    num_selected: int
    renormalizes: bool = False
    scaling: float = 1.0
    expert_scaling_E: Tensor | None = field(default=None, repr=False)
    selection: str = "score"
    bias_E: Tensor | None = field(default=None, repr=False)
    num_groups: int = 1
    num_groups_selected: int = 1
    group_score: str = "max"
    threshold: float | None = None

    def scores(self, logits_NE: Tensor) -> Tensor:
        """Scores, float32."""
        logits_NE = logits_NE.float()
        return torch.softmax(logits_NE, dim=-1) if self.scoring == "softmax" else torch.sigmoid(logits_NE)

    @property
    def selects_by_score(self) -> bool:
        """Whether selection values are the scores themselves, so that no one need compute them again."""
        return self.bias_E is None and self.num_groups == 1 and self.selection == "score"

    def selection_values(self, logits_NE: Tensor, excluded: Tensor | None = None) -> Tensor:
        """What the K largest are taken of; -inf for experts of groups that were not selected, and for `excluded`."""
        values_NE = self.scores(logits_NE) if self.selection == "score" else logits_NE.float()
        if self.bias_E is not None:
            values_NE = values_NE + self.bias_E.to(values_NE.device)
        if excluded is not None:
            values_NE = _without(values_NE, excluded)
        if self.num_groups > 1:
            grouped_NGe = values_NE.unflatten(-1, (self.num_groups, -1))
            best = 1 if self.group_score == "max" else min(2, grouped_NGe.shape[-1])
            by_group_NG = grouped_NGe.topk(best, dim=-1).values.sum(-1)
            chosen = by_group_NG.topk(self.num_groups_selected, dim=-1).indices
            out_NG = torch.ones_like(by_group_NG, dtype=torch.bool).scatter_(1, chosen, False)
            values_NE = grouped_NGe.masked_fill(out_NG.unsqueeze(-1), float("-inf")).flatten(1)
        return values_NE

    def weigh(self, logits_NE: Tensor, expert_ids_NK: Tensor) -> Tensor:
        """Weights of these experts by the rule, float32."""
        if self.threshold is not None:
            return self._sparse_mixer(logits_NE.float(), expert_ids_NK)
        weights_NK = self.scores(logits_NE).gather(1, expert_ids_NK)
        if self.renormalizes:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True).clamp_min(1e-20)
        if self.expert_scaling_E is not None:
            weights_NK = weights_NK * self.expert_scaling_E.float().to(weights_NK.device)[expert_ids_NK]
        return weights_NK * self.scaling

    def route(self, logits_NE: Tensor, excluded: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`(expert_ids_NK, weights_NK)` as the family would decide from these logits.

        Args:
            logits_NE: The router's logits.
            excluded: Experts to decide without, as if they did not exist: their logit is -inf, and so is their
                selection value after any bias. Ids, for every token; or a mask N x E.
        """
        if excluded is not None:
            logits_NE = _without(logits_NE, excluded)
        values_NE = self.selection_values(logits_NE, excluded)
        ids_NK = values_NE.topk(self.num_selected, dim=-1).indices
        return ids_NK, self.weigh(logits_NE, ids_NK)

    def _sparse_mixer(self, logits_NE: Tensor, expert_ids_NK: Tensor) -> Tensor:
        """Each selected expert's share in a softmax over the experts near it that are not yet taken (2409.12136)."""
        left_NE, parts = logits_NE, []
        for rank in range(expert_ids_NK.shape[1]):
            ids_N1 = expert_ids_NK[:, rank : rank + 1]
            top_N1 = logits_NE.gather(1, ids_N1)
            scale_NE = torch.maximum(logits_NE.abs(), top_N1)
            far_NE = (top_N1 - logits_NE) / scale_NE > 2 * self.threshold  # type: ignore[operator]
            parts.append(left_NE.masked_fill(far_NE, float("-inf")).softmax(-1).gather(1, ids_N1))
            left_NE = left_NE.scatter(1, ids_N1, float("-inf"))
        return torch.cat(parts, dim=1)

    def facts(self) -> RouterFacts:
        """The rule as facts to print."""
        what = {"score": "probability" if self.scoring == "softmax" else "sigmoid score", "logit": "logit"}
        by = what[self.selection] + (" plus correction bias" if self.bias_E is not None else "")
        if self.num_groups > 1:
            ranked = "best value" if self.group_score == "max" else "two best values"
            by += f" within the {self.num_groups_selected} of {self.num_groups} groups with the largest {ranked}"
        weights = "the selected scores"
        if self.threshold is not None:
            weights = f"each selected expert's softmax among those within {2 * self.threshold:g} of it (sparse mixer)"
        if self.renormalizes:
            weights += " divided by their sum"
        if self.expert_scaling_E is not None:
            weights += " times a learned factor per expert"
        if self.scaling != 1.0:
            weights += f" times {self.scaling:g}"
        return RouterFacts(
            scoring=self.scoring,
            selects_by=by,
            renormalizes=self.renormalizes,
            scaling=self.scaling,
            bias_corrected=self.bias_E is not None,
            num_groups=self.num_groups,
            num_groups_selected=self.num_groups_selected,
            rule=f"{self.scoring} of the logits; the {self.num_selected} largest by {by}; weights are {weights}",
        )


@dataclass(frozen=True)
class Fit:
    """A rule and how well it reproduces what the router did.

    Attributes:
        rule: The best rule found.
        weight_error: Largest relative difference of a weight, over the largest weight of the token.
        selection_error: How far the selection is from the K largest: largest amount by which an expert left out
            exceeds one taken, in units of the selection value; 0 where the selection is reproduced.
    """

    rule: RouterRule
    weight_error: float
    selection_error: float


def find_rule(logits_NE: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor, router: nn.Module, block: nn.Module) -> Fit:
    """The rule that reproduces a router's weights and selection best.

    Args:
        logits_NE: Logits of a probe, from the router.
        expert_ids_NK: What it selected; `weights_NK` the weights applied.
        weights_NK: See above.
        router: The router module; biases, groups and scaling factors are read off it.
        block: The module that holds router and experts; read where the router has no such thing.
    """
    logits_NE, weights_NK = logits_NE.float(), weights_NK.float()
    largest_N1 = weights_NK.abs().amax(-1, keepdim=True).clamp_min(1e-20)

    def weight_error(rule: RouterRule) -> float:
        return float(((rule.weigh(logits_NE, expert_ids_NK) - weights_NK).abs() / largest_N1).max())

    weighings = [(rule, weight_error(rule)) for rule in _weighings(logits_NE, expert_ids_NK, weights_NK, router, block)]
    weighing, error = min(weighings, key=lambda pair: pair[1])
    # Several rules can fit (with one expert per token, say): the plainest is first in the list.
    weighing, error = next(pair for pair in weighings if pair[1] <= max(2 * error, 1e-6))
    selections = [
        (rule, _selection_error(rule, logits_NE, expert_ids_NK)) for rule in _selections(weighing, router, block)
    ]
    rule, miss = min(selections, key=lambda pair: pair[1])
    return Fit(rule, error, miss)


def _weighings(
    logits_NE: Tensor, expert_ids_NK: Tensor, weights_NK: Tensor, router: nn.Module, block: nn.Module
) -> Iterator[RouterRule]:
    """Ways to make weights, plainest first; scaling factors are those declared, and last the one measured."""
    num_selected = expert_ids_NK.shape[1]
    declared = _attribute(router, block, ("norm_topk_prob",))
    renormalize = (False, True) if declared is None or not declared else (True, False)
    plain = [RouterRule(scoring, num_selected, renorm) for renorm in renormalize for scoring in ("softmax", "sigmoid")]
    for rule in plain:
        for scaling in _scalings(router, block):
            yield _with(rule, scaling=scaling)
    for rule in plain:
        for factor_E in _factors(router, block, logits_NE.shape[1]):
            yield _with(rule, expert_scaling_E=factor_E)
    threshold = _attribute(router, block, ("router_jitter_noise",))
    if threshold is not None:
        yield RouterRule("softmax", num_selected, threshold=float(threshold))
    for rule in plain:
        ratio = (weights_NK / rule.weigh(logits_NE, expert_ids_NK).clamp_min(1e-20)).median()
        yield _with(rule, scaling=float(ratio))


def _selections(rule: RouterRule, router: nn.Module, block: nn.Module) -> Iterator[RouterRule]:
    """Ways to select, the most specific that the module declares first."""
    biases: list[Tensor | None] = [*_biases(router, block), None]
    groups = _attribute(router, block, _NUM_GROUPS) or 1
    taken = _attribute(router, block, _GROUPS_SELECTED) or 1
    for bias_E in biases:
        for selection in ("score", "logit") if bias_E is not None else (rule.selection,):
            chosen = _with(rule, bias_E=bias_E, selection=selection)
            if groups > 1:
                for how in ("top2", "max"):
                    yield _with(chosen, num_groups=int(groups), num_groups_selected=int(taken), group_score=how)
            yield chosen


def _selection_error(rule: RouterRule, logits_NE: Tensor, expert_ids_NK: Tensor) -> float:
    values_NE = rule.selection_values(logits_NE)
    taken_NK = values_NE.gather(1, expert_ids_NK)
    left_NE = values_NE.scatter(1, expert_ids_NK, float("-inf"))
    excess_N = left_NE.amax(-1) - taken_NK.amin(-1)
    return float(excess_N.clamp_min(0).max())


def _without(values_NE: Tensor, excluded: Tensor) -> Tensor:
    """The values, -inf where an expert is excluded: by its id, or by a mask N x E."""
    if excluded.dtype == torch.bool:
        return values_NE.masked_fill(excluded, float("-inf"))
    return values_NE.index_fill(1, excluded, float("-inf"))


def _with(rule: RouterRule, **changes: object) -> RouterRule:
    return RouterRule(**{**vars(rule), **changes})  # type: ignore[arg-type]


def _attribute(router: nn.Module, block: nn.Module, names: tuple[str, ...]) -> float | None:
    """A number that the router, its block or their config declares."""
    for holder in (router, block, getattr(router, "config", None), getattr(block, "config", None)):
        for name in names:
            value = getattr(holder, name, None)
            if isinstance(value, int | float):
                return value
    return None


def _scalings(router: nn.Module, block: nn.Module) -> list[float]:
    """1, and every number under a name that says scale."""
    found = [1.0]
    for holder in (router, block):
        for name, value in vars(holder).items():
            if "scal" in name and isinstance(value, int | float) and float(value) not in found:
                found.append(float(value))
    return found


def _tensors(router: nn.Module, block: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for holder in (router, block):
        yield from holder.named_parameters()
        yield from holder.named_buffers()


def _biases(router: nn.Module, block: nn.Module) -> list[Tensor]:
    """Correction biases, by name, those of the router first."""
    return [tensor.detach().float().reshape(-1) for name, tensor in _tensors(router, block) if _BIAS_NAME.search(name)][
        :1
    ]


def _factors(router: nn.Module, block: nn.Module, num_experts: int) -> list[Tensor]:
    """Learned factors per expert, by name and size."""
    return [
        tensor.detach().reshape(-1)
        for name, tensor in _tensors(router, block)
        if "scale" in name and tensor.numel() == num_experts
    ][:1]
