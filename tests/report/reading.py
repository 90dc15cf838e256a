"""What a sentence says, without its words: its numbers, the experts and layers it names, whether it denies."""

from __future__ import annotations

import re
from collections import Counter

NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")


def numbers(text: str) -> list[str]:
    """Every number as it is written, in order; a comma that ends a clause is no part of one."""
    return [found.group().rstrip(",") for found in NUMBER.finditer(text)]


def unsaid(text: str, *values: str) -> list[str]:
    """Which of these numbers do not stand in the text, each as often as it is given."""
    return list((Counter(values) - Counter(numbers(text))).elements())


def denies(text: str) -> bool:
    """Whether it says that something is not so."""
    return re.search(r"\b(no|none|not|nothing|never|neither|cannot|can't)\b|n't\b", text, re.IGNORECASE) is not None


def names(text: str, kind: str, number: int) -> bool:
    """Whether it names a layer or an expert of this number: `expert 3`, `experts 1 and 3`, `layers 2, 5`."""
    listed = re.finditer(rf"\b{kind}s? (\d+(?:(?:, | and |, and | or |–)\d+)*)", text, re.IGNORECASE)
    return any(str(number) in numbers(found.group(1).replace("–", " ")) for found in listed)
