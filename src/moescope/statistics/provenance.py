"""What a state was counted from: which model, and which samples of text, so that none is counted twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moescope.errors import UsageError

_SHOWN = 3


@dataclass(frozen=True)
class Provenance:
    """Where counts come from.

    Attributes:
        model: The model and what was changed on it, as a hash; None where no one said.
        samples: Each sample counted, as a hash. A state that no run has named gets a random name when it is saved.
    """

    model: str | None = None
    samples: frozenset[str] = frozenset()

    @classmethod
    def of(cls, model: Mapping[str, Any], sample: Mapping[str, Any]) -> Provenance:
        """That of one run.

        Args:
            model: What tells the model from others, as plain values.
            sample: What tells the sample of text from others, as plain values.
        """
        return cls(_hash(model), frozenset([_hash({"model": model, "sample": sample})]))

    def merged(self, other: Provenance) -> Provenance:
        """That of both together.

        Raises:
            UsageError: They have a sample in common, or are of different models.
        """
        twice = sorted(self.samples & other.samples)
        if twice:
            raise UsageError(
                f"both states hold the sample {', '.join(twice[:_SHOWN])}: merged, it would count twice",
                expected="states of different samples of text",
                remedy="merge each sample once; a run over the same text with the same seed is the same sample",
            )
        if self.model is not None and other.model is not None and self.model != other.model:
            raise UsageError(
                f"the states are of different models ({self.model}, {other.model}), or of one with other changes",
                expected="counts of one model",
                remedy="compare the runs' tables instead of merging them",
            )
        return Provenance(self.model or other.model, self.samples | other.samples)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"model": self.model, "samples": sorted(self.samples)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Provenance:
        """From what `as_json` gave.

        Raises:
            TypeError, KeyError: It is something else.
        """
        model, samples = stored["model"], stored["samples"]
        if not isinstance(samples, list) or not all(isinstance(item, str) for item in [*samples, model or ""]):
            raise TypeError("provenance is no text")
        return cls(model, frozenset(samples))


def _hash(facts: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
