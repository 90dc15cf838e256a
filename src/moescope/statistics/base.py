"""The contract every accumulator keeps: declared state, `update`, `merge`, `compute`.

State is sums and counts (or a bounded sample). `update` and `merge` go through the same `_combine`, so splitting a
corpus anywhere, in any order, also into empty parts, gives the same answer. Counts are exact integers, and so are sums
of real numbers: see `moescope.statistics.exact`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from moescope.errors import UsageError
from moescope.statistics import exact
from moescope.statistics.storage import pack, unpack, write

if TYPE_CHECKING:
    import xarray as xr


METADATA = "moescope"
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
    """

    needs_logits: bool = False
    needs_predictions: bool = False
    needs_outputs: bool = False
    needs_inputs: bool = False

    def __init__(self, *, layers: list[int], device: torch.device | str = "cpu", **parameters: Any) -> None:
        self.layers = [int(layer) for layer in layers]
        self.parameters: dict[str, Any] = {"layers": self.layers, **parameters}
        self.device = torch.device(device)
        self.state: dict[str, Tensor] = {}
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

        Raises:
            UsageError: The two were made with different parameters.
        """
        if type(other) is not type(self) or other.parameters != self.parameters:
            raise UsageError(
                f"cannot merge {type(other).__name__}({other.parameters}) into "
                f"{type(self).__name__}({self.parameters})",
                expected="the same statistic made with the same parameters",
            )
        for name, tensor in other.state.items():
            if name in self._real:
                exact.add(self.state[name], tensor.to(self.device))
            else:
                self._combine(name, tensor.to(self.device))
        return self

    def empty(self) -> Self:
        """A new statistic with the same parameters and nothing counted."""
        return type(self)(device=self.device, **self.parameters)

    def nbytes(self) -> int:
        """Bytes the state takes."""
        return sum(tensor.nbytes for tensor in self.state.values())

    def save(self, path: str | Path) -> None:
        """Writes state and parameters to a safetensors file; `moescope.statistics.storage` says how.

        Raises:
            OSError: The disk refuses.
        """
        # one entry: safetensors writes several in an order that changes from process to process
        metadata = {METADATA: json.dumps({"name": type(self).__name__, "parameters": self.parameters})}
        packed = {part: stored for name, tensor in self.state.items() for part, stored in pack(name, tensor).items()}
        write(packed, path, metadata)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> Self:
        """Reads what `save` wrote.

        Raises:
            UsageError: The file holds another statistic.
        """
        with safe_open(path, framework="pt", device=str(device)) as file:
            found = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            name = found.get("name", "nothing known")
            if name != cls.__name__:
                raise UsageError(f"{path} holds the state of {name}", expected=cls.__name__)
            statistic = cls(device=device, **found["parameters"])
            stored = set(file.keys())
            statistic.state = {
                name: unpack(name, declared, stored, file.get_tensor) for name, declared in statistic.state.items()
            }
        return statistic
