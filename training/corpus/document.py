"""What every extractor yields, and the little cleaning that all of them share."""

import re
import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Document:
    """One text that a reader would call a document.

    Attributes:
        key: Readable name, unique within its domain and stable between builds, e.g. `emma/chapter-03`.
        text: The text, cleaned.
        source: The package and the work within it.
        licence: Its licence, where that is not its domain's.
        notice: The copyright notice that was cut from its head, if any.
    """

    key: str
    text: str
    source: str
    licence: str = ""
    notice: str = ""


def slug(words: str) -> str:
    """Turn a title into a lower-case ASCII name with hyphens, for use in document ids."""
    ascii_words = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_words.lower()).strip("-")


def unique_name(name: str, used: set[str]) -> str:
    """Add a number to a name that is used already, and note it as used."""
    number, unique = 1, name
    while unique in used:
        number += 1
        unique = f"{name}-{number}"
    used.add(unique)
    return unique


def clean(text: str) -> str:
    """Unify line ends, drop control characters and trailing blanks, keep at most one empty line in a row."""
    text = re.sub(r"\r\n|[\r\x0c]", "\n", text).replace("\ufeff", "").replace("\xa0", " ")
    text = re.sub(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u200b\ufffd]", "", text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text)
    return text.strip("\n").rstrip() + "\n" if text.strip() else ""


def dedent(text: str) -> str:
    """Remove the indentation that all non-empty lines have in common."""
    lines = text.split("\n")
    margin = min((len(line) - len(line.lstrip(" ")) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines)
