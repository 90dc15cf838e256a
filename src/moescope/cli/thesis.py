"""The thesis's scripts under their own names, as thin entries to the same analyses.

As the thesis ran them:

`router_decisive.py --num_tokens 100000 --layers 1 7 15`,
`router_stats.py --num_tokens 100000 --layers 1`,
`router_metrics.py --num_tokens 10000 --layers 1 7 15 --num_experts 64 --topk 8 --num_domains 22`,
`sim.py --num_tokens 10000 --layers 1 --method CKA`,
`dim_reduc.py --num_tokens 10000 --layers 1 7 15`,
`profiles.py --expert_id 9 --layer 1`,
`interv.py --prompt "Data collected by Barack Obama" --target_idx 4 --expert_id 9 --layer 1`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moescope.cli.app import new_app
from moescope.cli.capture import run_analyses
from moescope.cli.failures import launch
from moescope.cli.intervene import intervene
from moescope.cli.map import map_outputs
from moescope.cli.options import CaptureOptions, Count
from moescope.cli.profile import profile
from moescope.cli.similarity import similarity
from moescope.errors import UsageError

if TYPE_CHECKING:
    from moescope.models import MoEModel

DECISIVENESS = ["entropy"]
DISTRIBUTIONS = ["distributions"]
METRICS = ["usage", "overlap", "vocabulary", "coactivation", "paths"]


def router_decisive() -> int:
    """Entry point of `router_decisive.py`: how decided the router is."""
    app = new_app(
        "router_decisive.py", "How decided the router is. The same as `moescope entropy`, whose --help says more."
    )

    @app.default
    def command(*, options: CaptureOptions | None = None) -> None:
        run_analyses(DECISIVENESS, options or CaptureOptions(), command="router_decisive")

    return launch(app)


def router_stats() -> int:
    """Entry point of `router_stats.py`: the distributions of logits, probabilities and weights."""
    app = new_app(
        "router_stats.py",
        "The distributions of the router's logits, probabilities and weights. The same as `moescope distributions`, "
        "whose --help says more.",
    )

    @app.default
    def command(*, options: CaptureOptions | None = None) -> None:
        run_analyses(DISTRIBUTIONS, options or CaptureOptions(), command="router_stats")

    return launch(app)


def router_metrics() -> int:
    """Entry point of `router_metrics.py`: usage, specialization, overlap, vocabulary, co-activation, paths."""
    app = new_app(
        "router_metrics.py",
        "How much experts are used, for what, and how much they share. The same as `moescope usage`, `overlap`, "
        "`vocabulary`, `coactivation` and `paths`, whose --help says more, in one pass.",
    )

    @app.default
    def command(*, options: CaptureOptions | None = None, num_experts: Count = None, topk: Count = None) -> None:
        """Run it.

        Args:
            options: Which model, text, layers, folder.
            num_experts: Routed experts in each MoE layer; checked against the model. Default: the model's.
            topk: Experts per token; checked against the model. Default: the model's.
        """
        run_analyses(
            METRICS,
            options or CaptureOptions(),
            command="router_metrics",
            check=lambda model: check_topology(model, num_experts=num_experts, topk=topk),
        )

    return launch(app)


def sim() -> int:
    """Entry point of `sim.py`: how alike experts' outputs are."""
    app = new_app("sim.py", "How alike experts' outputs are. The same as `moescope similarity`.")
    app.default(similarity)
    return launch(app)


def profiles() -> int:
    """Entry point of `profiles.py`: who an expert is."""
    app = new_app("profiles.py", "Who an expert is. The same as `moescope profile`.")
    app.default(profile)
    return launch(app)


def interv() -> int:
    """Entry point of `interv.py`: what happens when an expert is turned up, down or off."""
    app = new_app(
        "interv.py", "What happens when an expert is turned up, down or off. The same as `moescope intervene`."
    )
    app.default(intervene)
    return launch(app)


def dim_reduc() -> int:
    """Entry point of `dim_reduc.py`: where experts' outputs lie."""
    app = new_app("dim_reduc.py", "Where experts' outputs lie. The same as `moescope map`.")
    app.default(map_outputs)
    return launch(app)


def check_topology(model: MoEModel, *, num_experts: int | None, topk: int | None) -> None:
    """Holds the numbers the reader gave against the model's.

    Raises:
        UsageError: They disagree.
    """
    for option, asked, actual, what in (
        ("--num_experts", num_experts, model.num_experts, "routed experts in each MoE layer"),
        ("--topk", topk, model.num_experts_per_token, "experts per token"),
    ):
        if asked is not None and asked != actual:
            raise UsageError(
                f"{option} {asked}, but {model.name} has {actual} {what}",
                expected=f"{option} {actual}",
                remedy=f"leave {option} out, it is read from the model; or name another with --model",
            )
