"""The contract every accumulator keeps: declared state, `update`, `merge`, `compute`.

State is sums and counts (or a bounded sample). `update` and `merge` go through the same `_combine`, so splitting a
corpus anywhere, in any order, also into empty parts, gives the same answer. Counts are exact integers, and so are sums
of real numbers: see `moescope.statistics.exact`.
"""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from moescope.errors import UsageError, at_least, whole_number, whole_numbers
from moescope.statistics import exact
from moescope.statistics.provenance import Provenance
from moescope.statistics.storage import declared, opened, pack, write

if TYPE_CHECKING:
    import xarray as xr


Record = TypeVar("Record")
"""What a statistic is updated with: `Routing`, `ExpertOutputs`, or a pair of routings."""


class Statistic(ABC, Generic[Record]):
    """An accumulator over records.

    A subclass takes its parameters as keywords, hands them to `super().__init__` (they must be JSON: they are saved
    with the state, and two statistics merge only if they agree) and declares its state with `_declare`.

    Attributes say what it must be given; a pass computes nothing that none of its statistics needs:
        needs_logits: `record.logits_TE` (and so `probabilities_TE`).
        needs_predictions: `record.tokens.predicted_token_ids_T`; such a statistic is updated after the forward pass
            and gets no logits.
        needs_outputs: it is updated with `ExpertOutputs` instead of `Routing`.
        needs_inputs: `record.inputs_TM`.
        needs_documents: rows that are documents; recorded routing whose documents are not known is not given to it.
    """

    needs_logits: bool = False
    needs_predictions: bool = False
    needs_outputs: bool = False
    needs_inputs: bool = False
    needs_documents: bool = False

    def __init__(self, *, layers: list[int], device: torch.device | str = "cpu", **parameters: Any) -> None:
        self.layers = whole_numbers(layers, "layers")
        for name, value in parameters.items():
            if name.startswith("num_") and value is not None:
                at_least(0, **{name: whole_number(value, name)})
        self.parameters: dict[str, Any] = {"layers": self.layers, **parameters}
        self.device = torch.device(device)
        self.state: dict[str, Tensor] = {}
        self.provenance = Provenance()
        self._real: set[str] = set()
        self._position = {layer: position for position, layer in enumerate(self.layers)}

    def _declare(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> None:
        """Declares a sum that starts at zero. `name` ends in its shape (see `moescope.records`).

        One of float64 lies in `state` as two whole numbers, its last dimension; `totals` has it as it was declared.
        """
        if dtype == torch.float64:
            self._real.add(name)
            self.state[name] = exact.zeros(shape, self.device)
        else:
            self.state[name] = torch.zeros(shape, dtype=dtype, device=self.device)

    def _combine(self, name: str, increment: Tensor, at: Any = ...) -> None:
        """Adds `increment` to `state[name][at]`: the one way that state ever changes.

        A statistic whose state is not all sums (`moescope.statistics.samples.base`) overrides this.
        """
        if at is ... and self.state[name].dtype == torch.int32 and not _fits(self.state[name], increment):
            self.state[name] = self.state[name].to(torch.int64)
        # Records may come from another device than the state: a statistic kept on the CPU, a model on a GPU.
        if name in self._real:
            exact.add(self.state[name][at], exact.parts(increment.to(self.device, torch.float64)))
        else:
            self.state[name][at] += increment.to(self.state[name])

    def totals(self) -> dict[str, Tensor]:
        """The state by name, sums of real numbers as float64 in the shape they were declared with."""
        return {name: exact.value(tensor) if name in self._real else tensor for name, tensor in self.state.items()}

    @abstractmethod
    def update(self, record: Record) -> None:
        """Takes in one record; a record of a layer this statistic was not made for is an error."""

    @abstractmethod
    def compute(self) -> xr.Dataset:
        """Labeled numbers with unit and definition in `attrs`; state stays as it was."""

    def merge(self, other: Self) -> Self:
        """Adds another part's state to this one and returns self; `other` is unchanged.

        Sums of 32 bits that would not hold both are widened.

        Raises:
            UsageError: The two were made with different parameters, are of different models, or have text in common.
        """
        self._check_mergeable(other)
        provenance = self.provenance.merged(other.provenance)
        for name, tensor in other.state.items():
            if name in self._real:
                exact.add(self.state[name], tensor.to(self.device))
            else:
                self._combine(name, tensor.to(self.device))
        self.provenance = provenance
        return self

    def _check_mergeable(self, other: Statistic[Any]) -> None:
        if other is self:
            raise UsageError("a statistic cannot be merged with itself", expected="states of different samples of text")
        if type(other) is not type(self) or other.parameters != self.parameters:
            raise UsageError(
                f"cannot merge {type(other).__name__}({getattr(other, 'parameters', '')}) into "
                f"{type(self).__name__}({self.parameters})",
                expected="the same statistic made with the same parameters",
            )

    def empty(self) -> Self:
        """A new statistic with the same parameters and nothing counted."""
        return type(self)(device=self.device, **self.parameters)

    def nbytes(self) -> int:
        """Bytes the state takes."""
        return sum(tensor.nbytes for tensor in self.state.values())

    def resident_bytes(self, num_tokens: int) -> int:
        """Bytes of the state that so many tokens fill, where memory that was never written to takes none."""
        return self.nbytes()

    def save(self, path: str | Path) -> None:
        """Writes state and parameters to a safetensors file; `moescope.statistics.storage` says how.

        A state that no run has named gets a name of its own from then on, so that it can't be merged with itself.

        Raises:
            OSError: The disk refuses.
        """
        packed = {part: stored for name, tensor in self.state.items() for part, stored in pack(name, tensor).items()}
        if not self.provenance.samples and any(bool(tensor.any()) for tensor in self._sums()):
            self.provenance = Provenance(self.provenance.model, frozenset([uuid.uuid4().hex[:16]]))
        facts = {
            "name": type(self).__name__,
            "parameters": self.parameters,
            "provenance": self.provenance.as_json(),
            "tensors": declared(self.state),
        }
        write(packed, path, facts)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Reads what `save` wrote; nothing of the file is trusted.

        Raises:
            UsageError: There is no such file, it is damaged, of another version, or holds another statistic.
        """
        with opened(path) as stored:
            if stored.facts.get("name") != cls.__name__:
                raise UsageError(
                    f"{path} holds the state of {stored.facts.get('name', 'nothing known')}", expected=cls.__name__
                )
            # What it would take is known before memory is taken for it.
            stored.check(cls(device="meta", **stored.facts["parameters"]).state)
            statistic = cls(device=device, **stored.facts["parameters"])
            statistic.state = {name: stored.tensor(name, tensor) for name, tensor in statistic.state.items()}
            statistic.provenance = Provenance.from_json(stored.facts["provenance"])
        return statistic

    def _sums(self) -> list[Tensor]:
        """State that is 0 where nothing was counted."""
        return list(self.state.values())


def _fits(state: Tensor, increment: Tensor) -> bool:
    """Whether the sum of two tensors of whole numbers is certain to fit into the dtype of the first."""
    if not state.numel() or not increment.numel():
        return True
    bounds = torch.iinfo(state.dtype)
    (low, high), (least, most) = ([int(end) for end in tensor.aminmax()] for tensor in (state, increment))
    return bounds.min <= low + least and high + most <= bounds.max
