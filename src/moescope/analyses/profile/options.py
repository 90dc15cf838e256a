"""Options of `moescope profile`."""

from __future__ import annotations

from dataclasses import dataclass, field

from moescope.errors import at_least


@dataclass(frozen=True)
class ProfileOptions:
    """Which experts are profiled, and with what."""

    experts: tuple[int, ...] | None = field(default=None, metadata={"flags": ["--experts", "--expert", "--expert-id"]})
    """Experts to write a file and a page about, numbered from 0, of every layer looked at. Default: all, as lines of
    one file, with pages about those whose label has the highest balanced accuracy on the selection half."""

    num_contexts: int = field(default=8, metadata={"flags": ["--num-contexts", "--contexts"]})
    """Contexts to keep of each expert, at most one of a document."""

    num_samples: int = 20_000
    """Tokens that labels are selected and evaluated on."""

    num_pages: int = 3
    """Experts with a page where all are profiled."""

    neighbors: bool = True
    """Find the nearest experts of each by output (all experts are run on the same tokens) and by weights."""

    neighbor_tokens: int = 2_048
    """Tokens that all experts are run on to find the nearest by output."""

    effects: bool = True
    """Estimate what ablating each expert does to the loss, from one backward pass over a sample; experts that have a
    page are also ablated, on the half of it that is held out."""

    effect_tokens: int = 40_000
    """Tokens of that sample, split over the domains."""

    def __post_init__(self) -> None:
        """Refuses numbers that make no sense."""
        at_least(1, num_contexts=self.num_contexts, num_samples=self.num_samples, effect_tokens=self.effect_tokens)
        at_least(4, neighbor_tokens=self.neighbor_tokens)
        at_least(0, num_pages=self.num_pages)
