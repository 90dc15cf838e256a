"""Text in any script: which font has a character's glyph, how wide text is, and how it is shortened to fit.

The base fonts ship with matplotlib. A character that they lack is drawn with a font of the system, as matplotlib and
fontconfig list them; one that no font has is written as its code point, ⟨U+6F22⟩.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.font_manager import FontEntry, FontPath, FontProperties, findfont, get_font
from matplotlib.ft2font import FaceFlags, FT2Font, LoadFlags

SANS = "DejaVu Sans"
MONOSPACED = "DejaVu Sans Mono"
ELLIPSIS = "…"
PREFERRED = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans")
"""Families that are looked into first; then others without serifs, then the rest."""
MOST_FONTS = 500
"""Fonts that are looked into for a character at most."""
_NO_LETTERS = re.compile(r"last ?resort|adobe (not ?def|blank)|emoji|symbol|icon", re.IGNORECASE)
# Controls would break the line or turn its direction; selectors of a variant have no glyph and need none.
_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SELECTORS = re.compile("[\ufe00-\ufe0f]")


@cache
def _font(family: str) -> FT2Font:
    return get_font(findfont(FontProperties(family=family)))


def _has(family: str, character: str) -> bool:
    return bool(_font(family).get_char_index(ord(character)))


@cache
def _candidates() -> tuple[FontEntry, ...]:
    """The system's fonts, the best first; those installed since matplotlib made its list are added to it."""
    listed = {entry.fname for entry in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - listed):
        try:
            font_manager.fontManager.addfont(path)
        except Exception:  # of any kind: fonts are files of strangers, and one that is damaged is no candidate
            continue
    entries = [entry for entry in font_manager.fontManager.ttflist if not _NO_LETTERS.search(entry.name)]
    return tuple(sorted(entries, key=_merit)[:MOST_FONTS])


def _merit(entry: FontEntry) -> tuple[int, bool, bool, int, str, str, int]:
    rank = PREFERRED.index(entry.name) if entry.name in PREFERRED else len(PREFERRED)
    weight = entry.weight if isinstance(entry.weight, int) else 400
    plain = entry.style == "normal" and entry.stretch == "normal"
    sans = "serif" not in entry.name.lower() and "mono" not in entry.name.lower()
    return rank, not plain, not sans, abs(weight - 400), entry.name, entry.fname, entry.index


@lru_cache(maxsize=32)
def _opened(entry: FontEntry) -> FT2Font | None:
    """A font whose outlines can be drawn at any size; None for others."""
    try:
        font = get_font(FontPath(entry.fname, entry.index))
    except Exception:  # of any kind, as above
        return None
    return font if FaceFlags.SCALABLE in font.face_flags and FaceFlags.COLOR not in font.face_flags else None


@cache
def _covering(character: str) -> FontEntry | None:
    """The system's best font with a glyph for a character that the base fonts lack."""
    for entry in _candidates():
        font = _opened(entry)
        if font is not None and font.get_char_index(ord(character)):
            return entry
    return None


@cache
def _written(character: str, family: str) -> str:
    """A character as it is drawn: itself, or its code point where it has no glyph or would steer the text."""
    if unicodedata.category(character) != "Cc" and not _DIRECTIONS.match(character):
        if _has(family, character) or _covering(character) is not None:
            return character
        if _SELECTORS.match(character):
            return ""
    return f"⟨U+{ord(character):04X}⟩"


def drawable(text: str, family: str = SANS) -> str:
    """A line of text in which what no font has a glyph for, and what controls, is written as code points, ⟨U+6F22⟩."""
    return text if text.isascii() and text.isprintable() else "".join(_written(each, family) for each in text)


def families(texts: Iterable[str], family: str = SANS) -> list[str]:
    """The base family and those that have what it lacks of some drawable texts, for `Text.set_fontfamily`."""
    missing = {c for text in texts if not text.isascii() for c in text if c != "\n" and not _has(family, c)}
    found = [entry for c in sorted(missing) if (entry := _covering(c)) is not None]
    return [family, *dict.fromkeys(entry.name for entry in sorted(set(found), key=_merit))]


@cache
def has_postscript_outlines(family: str) -> bool:
    """Whether a font has PostScript (CFF) outlines, which a PDF can't hold as TrueType."""
    with Path(findfont(FontProperties(family=family))).open("rb") as file:
        head = file.read(16)
        if head[:4] == b"ttcf":
            file.seek(int.from_bytes(head[12:16], "big"))
            head = file.read(4)
    return head[:4] == b"OTTO"


@lru_cache(maxsize=65536)
def _advance(character: str, family: str) -> float:
    """Width of a character in em."""
    font = _font(family)
    if not font.get_char_index(ord(character)):
        entry = _covering(character)
        font = font if entry is None else _opened(entry) or font
    glyph = font.load_char(ord(character), flags=LoadFlags.NO_HINTING | LoadFlags.NO_SCALE)
    return float(glyph.horiAdvance / font.units_per_EM)


def text_width(text: str, size: float, family: str = SANS) -> float:
    """Width in points of drawable text, one line."""
    return size * sum(_advance(character, family) for character in text)


def fitting(text: str, size: float, width: float, family: str = SANS) -> str:
    """Drawable text, cut at its end with … where it is wider than `width` points."""
    text = drawable(text, family)
    if text_width(text, size, family) <= width:
        return text
    return _head(text, size, width - text_width(ELLIPSIS, size, family), family) + ELLIPSIS


def _head(text: str, size: float, width: float, family: str) -> str:
    """As many characters of its beginning as fit."""
    used = 0.0
    for number, character in enumerate(text):
        used += text_width(character, size, family)
        if used > width:
            return text[:number]
    return text


def shortened(text: str, size: float, width: float, family: str = SANS, *, tail: float = 0.4) -> str:
    """Drawable text, with … in its middle where it is wider than `width` points; its end gets `tail` of the room."""
    text = drawable(text, family)
    if text_width(text, size, family) <= width:
        return text
    room = max(0.0, width - text_width(ELLIPSIS, size, family))
    end = _head(text[::-1], size, tail * room, family)[::-1].lstrip(" _-./")
    start = _head(text, size, room - text_width(end, size, family), family).rstrip(" _-./")
    return f"{start}{ELLIPSIS}{end}"


def short_names(names: Sequence[str], size: float, width: float, family: str = SANS) -> list[str]:
    """Each name shortened to at most `width` points; those of different names differ.

    Names that would be the same are cut elsewhere; where that does not help, their number among the names is added.
    """
    shown: dict[str, str] = {}
    for position, name in enumerate(dict.fromkeys(names)):
        taken = set(shown.values())
        tried = (shortened(name, size, width, family, tail=tail) for tail in (0.4, 0.7, 0.2, 0.9))
        mark = f" #{position + 1}"
        room = width - text_width(mark, size, family)
        shown[name] = next((one for one in tried if one not in taken), shortened(name, size, room, family) + mark)
    return [shown[name] for name in names]


def wrapped(text: str, size: float, width: float, family: str = SANS, most_lines: int | None = 2) -> list[str]:
    """Drawable text as lines of at most `width` points, broken at spaces, and within a word that is wider.

    Args:
        text: One paragraph.
        size: Of the print, points.
        width: Of a line, points.
        family: The base font.
        most_lines: The last line is cut where more would follow; None: as many as it takes.
    """
    lines: list[str] = []
    for word in drawable(text, family).split(" "):
        rest = word
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size, family) <= width:
            lines[-1] = longer
            continue
        while most_lines is None and text_width(rest, size, family) > width:
            part = _head(rest, size, width, family) or rest[:1]
            lines.append(part)
            rest = rest[len(part) :]
        if lines and len(lines) == most_lines:
            lines[-1] = longer
        else:
            lines.append(rest)
    return [fitting(line, size, width, family) for line in lines]
