"""What the comparison of checkpoints can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from moescope.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SaturationOptions:
    """Options of a comparison of checkpoints with the final model."""

    checkpoints: tuple[str, ...] = field(metadata={"flags": ["--checkpoints", "--checkpoint"]})
    """Earlier states of the model, in the order of training: folders, Hugging Face ids (also id@revision), or revisions
    of the model's repository."""

    labels: tuple[str, ...] | None = field(default=None, metadata={"flags": ["--labels", "--label"]})
    """Name of each checkpoint in tables and figures. Default: the folder's or the revision's name."""

    shares: tuple[float, ...] | None = field(default=None, metadata={"flags": ["--shares", "--share"]})
    """Share of training that each checkpoint had completed, in percent: the horizontal axis of the figure."""

    def __post_init__(self) -> None:
        if not self.checkpoints:
            raise UsageError("there is no checkpoint to compare with", remedy="name one or more in `checkpoints`")
        for name, given in (("labels", self.labels), ("shares of training", self.shares)):
            if given is not None and len(given) != len(self.checkpoints):
                raise UsageError(
                    f"{len(given)} {name} for {len(self.checkpoints)} checkpoints", expected="one for each"
                )
