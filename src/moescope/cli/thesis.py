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

from moescope.analyses import registry
from moescope.cli.app import new_app
from moescope.cli.capture import run_analyses
from moescope.cli.failures import launch
from moescope.cli.options import CaptureOptions, Count
from moescope.errors import UsageError

if TYPE_CHECKING:
    from moescope.models import MoEModel

METRICS = ["usage", "overlap", "vocabulary", "coactivation", "paths"]


def router_decisive() -> int:
    """Entry point of `router_decisive.py`: confidence of the router."""
    return _question("router_decisive", "entropy")


def router_stats() -> int:
    """Entry point of `router_stats.py`: distributions of logits, probabilities and weights."""
    return _question("router_stats", "distributions")


def router_metrics() -> int:
    """Entry point of `router_metrics.py`: usage, specialization, overlap, vocabulary, co-activation, paths."""
    app = new_app(
        "router_metrics.py",
        "Usage, specialization and overlap of experts. The same as `moescope usage`, `overlap`, `vocabulary`, "
        "`coactivation` and `paths` in one pass; `moescope COMMAND --help` has the definitions.",
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
    """Entry point of `sim.py`: similarity of experts' outputs."""
    return _question("sim", "similarity")


def dim_reduc() -> int:
    """Entry point of `dim_reduc.py`: map of experts' outputs."""
    return _question("dim_reduc", "map")


def profiles() -> int:
    """Entry point of `profiles.py`: profiles of experts."""
    from moescope.cli.profile import profile

    app = new_app("profiles.py", "Profiles of experts. The same as `moescope profile`.")
    app.default(profile)
    return launch(app)


def interv() -> int:
    """Entry point of `interv.py`: effects of scaling or ablating experts on a prompt's next tokens."""
    from moescope.cli.intervene import intervene

    app = new_app("interv.py", "Effects of scaling or ablating experts on a prompt. The same as `moescope intervene`.")
    app.default(intervene)
    return launch(app)


def _question(script: str, name: str) -> int:
    """Runs a script that is one question's command under another name."""
    from moescope.cli.questions import question

    entry = registry.entry(name)
    app = new_app(f"{script}.py", f"{entry.summary} The same as `moescope {name}`, whose --help has the definitions.")
    app.default(question(entry, command=script if script.startswith("router") else name))
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
