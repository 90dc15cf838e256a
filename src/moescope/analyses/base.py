"""What an analysis is: the statistics it needs, the table it makes of them, the figures it draws of the table.

A new question is one new file in this folder with one `Analysis` subclass; `analyses.find` discovers it, and the
command line, the report and the Python API have it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np
    import pandas as pd
    import xarray as xr
    from matplotlib.figure import Figure

    from moescope.models import MoEModel
    from moescope.statistics.base import Statistic

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Context:
    """What a run is about: everything an analysis may need to know beside its statistics.

    Attributes:
        model: The model looked into (facts, tokenizer, device).
        layers: The MoE layers looked at, decoder block indices, ascending.
        domains: The corpus' domains, in order; index is `domain_id`.
        groups: Group of each domain (prose, reference, ...); empty where the corpus has none.
        corpus_name: Name of the corpus, for captions.
        num_tokens: Tokens asked for (before the pass) or counted (after it).
        seed: The run's seed.
        predictions: Whether the whole depth runs and predicted tokens are known.
        corpus_fingerprint: Hash of the corpus.
    """

    model: MoEModel
    layers: Sequence[int]
    domains: Sequence[str]
    groups: Mapping[str, str]
    corpus_name: str
    num_tokens: int
    seed: int
    predictions: bool
    corpus_fingerprint: str = ""
    _known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: str, compute: Callable[[], _Result]) -> _Result:
        """What several analyses of a run need and is dear to compute: computed by the first that asks for `key`.

        The key says all that the result depends on beside the run itself.
        """
        if key not in self._known:
            self._known[key] = compute()
        return self._known[key]


class Analysis(ABC):
    """One question about a model.

    One that has options is a frozen dataclass, each option a field with a default; what it is by default is what the
    report shows.

    Class attributes:
        name: The command's name and the key in `run.tables`.
        summary: One line for `--help`.
        about: What the question is about: the "router", the "experts", or "causes".
        min_domains: Fewest domains it makes sense for.
        needs_text: Whether anything of it comes from text; False for questions about weights alone.
        needs_whole_depth: Its command loads the whole model, whatever layers are looked at.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    about: ClassVar[str] = "router"
    min_domains: ClassVar[int] = 1
    needs_text: ClassVar[bool] = True
    needs_whole_depth: ClassVar[bool] = False

    @property
    def options(self) -> dict[str, Any]:
        """Its options by name, for the manifest."""
        return asdict(self) if is_dataclass(self) and not isinstance(self, type) else {}

    def check(self, context: Context) -> None:  # noqa: B027 (most questions can always be asked)
        """Refuses what can't be answered, before any text is read.

        Raises:
            UsageError: Says what was asked, what could be, and what to do. In a run of everything there is, the
                analysis is then left out and the run's notes say why.
        """

    @abstractmethod
    def statistics(self, context: Context) -> dict[str, Statistic]:
        """The accumulators it needs, empty, on the model's device.

        Analyses of one run share a statistic if they give it the same key, type and parameters.
        """

    @abstractmethod
    def table(self, statistics: Mapping[str, Statistic], context: Context) -> xr.Dataset:
        """Labelled numbers, with `units` and `definition` in each variable's attrs."""

    @abstractmethod
    def frames(self, table: xr.Dataset, context: Context) -> dict[str, pd.DataFrame]:
        """The table as rows: file name without suffix -> frame; column names are the glossary's."""

    def arrays(self, table: xr.Dataset, context: Context) -> dict[str, dict[str, np.ndarray]]:
        """What would be silly as rows (matrices of experts by experts): file name without suffix -> named arrays."""
        return {}

    def files(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, str]]:
        """Text files that are neither tables nor arrays: path inside the results folder -> text."""
        yield from ()

    @abstractmethod
    def figures(self, table: xr.Dataset, context: Context) -> Iterator[tuple[str, Figure]]:
        """Figures by file name without suffix, drawn from the table alone."""
