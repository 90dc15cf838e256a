"""File names made of any text: escaped, of bounded length, and different also where upper and lower case are one."""

from __future__ import annotations

import hashlib
import re
import unicodedata

MAX_BYTES = 120
_UNSAFE = re.compile(r"[^\w .+=,@()-]")
# Names that Windows keeps for devices, with or without a suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


def file_name(text: str) -> str:
    """A file name that shows the text: `%2F` and the like for what may mean something else, cut where it is long.

    Texts of letters, digits, `_` and `-` are left as they are.
    """
    name = _UNSAFE.sub(lambda match: _escaped(match[0]), text) or "%"
    if name[0] in ". -" or _DEVICES.match(name):
        name = _escaped(name[0]) + name[1:]
    if name[-1] in ". ":
        name = name[:-1] + _escaped(name[-1])
    return name if len(name.encode()) <= MAX_BYTES else _marked(name, text)


class FileNames:
    """File names of one folder: each text keeps its own, and no two differ in case alone."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """The name of this text."""
        name = file_name(text)
        if self._texts.setdefault(_folded(name), text) != text:
            name = _marked(name, text)
        return name


def _escaped(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def _marked(name: str, text: str) -> str:
    """The beginning of a name, and a hash of the text that tells it from others with this beginning."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
    return f"{name.encode()[: MAX_BYTES - 10].decode(errors='ignore')}%{digest}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
