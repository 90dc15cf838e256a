"""Extractors of the four other languages: the same handbook in German, French, Russian and Chinese."""

import re
from collections.abc import Iterator
from pathlib import Path

from training.corpus.document import Document, clean
from training.corpus.markup import plain_text
from training.corpus.sources import BY_NAME

ENGLISH_WORDS = re.compile(r"\b(the|of|and|is|to|with|that|this|for|are|if|you|in)\b", re.IGNORECASE)
# Program examples are in Basic and Python, not in the page's language.
PROGRAM = re.compile(r"<pre\b.*?</pre>", re.DOTALL)

# Of a phrase's variants for several systems or applications, a reader sees one; the default is kept.
OTHER_VARIANT = re.compile(
    r'<span hidden="true" id="\w+" class="[A-Z]+">(?:(?!switchinline|</p>).)*?(?=<span hidden="true" id="default)',
    re.DOTALL,
)

SHORTEST_PAGE = {"de": 200, "fr": 200, "ru": 200, "zh-CN": 70}


def german(unpacked: Path) -> Iterator[Document]:
    """LibreOffice's help in German, one page a document."""
    return _help(unpacked, "libreoffice-help-de", "de")


def french(unpacked: Path) -> Iterator[Document]:
    """LibreOffice's help in French, one page a document."""
    return _help(unpacked, "libreoffice-help-fr", "fr")


def russian(unpacked: Path) -> Iterator[Document]:
    """LibreOffice's help in Russian, one page a document."""
    return _help(unpacked, "libreoffice-help-ru", "ru")


def chinese(unpacked: Path) -> Iterator[Document]:
    """LibreOffice's help in simplified Chinese, one page a document."""
    return _help(unpacked, "libreoffice-help-zh-cn", "zh-CN")


def _help(unpacked: Path, name: str, language: str) -> Iterator[Document]:
    package = BY_NAME[name]
    folder = unpacked / package.folder / "usr/share/libreoffice/help" / language / "text"
    for path in sorted(folder.glob("**/*.html")):
        page = path.read_text("utf-8")
        body = re.search(r'(?s)<div id="DisplayArea".*?(?=<div id="DonationFrame"|</body>)', page)
        if not body:
            continue
        visible = OTHER_VARIANT.sub("", PROGRAM.sub(" ", body.group(0)))
        lines = [line for line in plain_text(visible).split("\n") if not is_untranslated(line, language)]
        text = clean("\n".join(dict.fromkeys(lines)))
        # Where a page was left untranslated, little more than its headings remains.
        if len(text) < SHORTEST_PAGE[language]:
            continue
        name = path.relative_to(folder).as_posix()
        yield Document(name.removesuffix(".html").lower(), text, f"{package.label}: LibreOffice Help, {name}")


def is_untranslated(line: str, language: str) -> bool:
    """Whether a line of a translated page was left in English."""
    letters = sum(character.isalpha() for character in line)
    if language in ("ru", "zh-CN"):
        native = sum(character.isalpha() and ord(character) > 0x3FF for character in line)
        return letters > 12 and native < 0.25 * letters
    words = line.split()
    return len(line) > 25 and len(ENGLISH_WORDS.findall(line)) > 0.15 * len(words)
