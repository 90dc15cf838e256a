"""The types of what `capture` is given: a wrong one is an error that names the parameter, before anything is read."""

from __future__ import annotations

from types import NoneType
from typing import Any

from moescope.analyses import registry
from moescope.analyses.base import Analysis, check_options
from moescope.corpora import Corpus
from moescope.errors import of_type, whole_number
from moescope.models.given import check_model


def check_types(model: Any, corpus: Any, analyses: Any, skip: Any, predictions: Any, **numbers: Any) -> None:
    """Refuses arguments of other types than `capture` takes.

    Args:
        model: From `load_model`.
        corpus: From `load_corpus`, or None.
        analyses: Names and analyses, or None.
        skip: Names.
        predictions: True, False or None.
        **numbers: Whole numbers by parameter; a `sequence_length` may be None.

    Raises:
        UsageError: Names the parameter, what was found and what it takes.
    """
    check_model(model)
    of_type(corpus, (Corpus, NoneType), "corpus", 'what load_corpus gives, such as load_corpus("embedded")')
    of_type(predictions, (bool, NoneType), "predictions", "True, False or None")
    names = f"a list of names: {', '.join(registry.names())}"
    for name, given in (("analyses", [] if analyses is None else analyses), ("skip", skip)):
        of_type(given, (list, tuple, set, frozenset, dict), name, names)
        for item in given:
            of_type(item, str if name == "skip" else (str, Analysis), name, names)
            if isinstance(item, Analysis):
                check_options(item)
    for name, value in numbers.items():
        if value is not None or name != "sequence_length":
            whole_number(value, name)
