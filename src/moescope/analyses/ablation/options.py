"""What the ablation of a corpus can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from moescope.errors import UsageError, at_least


@dataclass(frozen=True, kw_only=True)
class AblateOptions:
    """Options of an ablation."""

    layer: int = field()
    """MoE layer, numbered from 0 as the checkpoint's decoder blocks."""

    experts: tuple[int, ...] = field(metadata={"flags": ["--experts", "--expert"]})
    """Expert of the layer, numbered from 0, or several that are ablated together."""

    num_controls: int = field(default=20, metadata={"flags": ["--num-controls", "--controls"]})
    """Control ablations: random experts of the layer (or sets of as many) that are selected about as often. Fewer where
    the layer does not have that many experts; 0: none."""

    def __post_init__(self) -> None:
        at_least(0, num_controls=self.num_controls)
        if not self.experts:
            raise UsageError("`experts=()`", expected="one expert of the layer or more")
