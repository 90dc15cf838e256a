"""The two small files that ship beside the held-out text: domains.toml and ATTRIBUTION.md."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.corpus.document import Document
from training.corpus.domains import DOMAINS, Domain
from training.corpus.sources import BY_NAME
from training.corpus.works import WORKS

# The projects' own notices, which the licences below cover; a file that names another holder is listed by itself.
OWN_NOTICE = re.compile(r"PostgreSQL Global Development Group|The Go Authors|University of California$")

HEADING = """# Whose text this is

`held_out.parquet` holds documents of {count} domains, none of which the embedded model was trained on. Every row names
its package and work (`source`) and its licence (`licence`); `document_id` leads to the very chapter, page, term or
file. Long documents are cut to a passage, at paragraphs, lines or definitions; what else was changed is said here. The
training text came from the same works and is not part of this package.

moescope's own licence covers none of this text, except where it says so. No rights holder endorses moescope.
"""


def domains_toml() -> str:
    """List the domains in their order, with group, description and licence."""
    lines = ["# The domains of the embedded corpus, in the order tables and figures show them."]
    for domain in DOMAINS:
        lines += [
            "",
            "[[domain]]",
            f'name = "{domain.name}"',
            f'group = "{domain.group}"',
            f'description = "{domain.description}"',
            f'licence = "{domain.licence}"',
        ]
    return "\n".join(lines) + "\n"


def attribution(held_out: Mapping[str, Sequence[Document]]) -> str:
    """Say whose text is redistributed, and under which terms.

    Args:
        held_out: A domain's name -> its held-out documents.

    Returns:
        The text of ATTRIBUTION.md.
    """
    parts = [HEADING.format(count=len(DOMAINS))]
    for domain in DOMAINS:
        parts.append(_section(domain, held_out[domain.name]))
    parts.append((Path(__file__).parent / "notices.md").read_text("utf-8").rstrip() + "\n")
    parts.append(_own_notices(held_out))
    return "\n".join(parts)


def _section(domain: Domain, documents: Sequence[Document]) -> str:
    work = WORKS[domain.name]
    packages = "; ".join(BY_NAME[name].label for name in work.packages) or "none, generated"
    lines = [
        f"## {domain.name}",
        "",
        f"- What: {domain.description} ({len(documents)} documents)",
        f"- By: {work.holder}",
        f"- Licence: {domain.licence}; {work.terms}",
        f"- Package: {packages}",
        f"- Changed: {work.changes}",
    ]
    if domain.name == "wikipedia":
        titles = sorted({document.source.split("Wikipedia, ", 1)[1] for document in documents})
        pages = (f"[{title}](https://en.wikipedia.org/wiki/{title.replace(' ', '_')})" for title in titles)
        lines.append(f"- Articles: {', '.join(pages)}")
    return "\n".join(lines) + "\n"


def _own_notices(held_out: Mapping[str, Sequence[Document]]) -> str:
    """Reproduce the notices that were cut from the head of files with further copyright holders."""
    files: dict[str, list[str]] = {}
    for name, documents in held_out.items():
        for document in sorted(documents, key=lambda document: document.key):
            holders = [line for line in document.notice.split("\n") if re.search(r"copyright|\(c\)", line, re.I)]
            if any(not OWN_NOTICE.search(line.strip()) for line in holders):
                files.setdefault(document.notice.strip(), []).append(f"{name}/{document.key}")
    lines = ["## Files with notices of their own", "", "These opened the files named; passages of them are included."]
    for notice, names in files.items():
        lines += ["", ", ".join(f"`{name}`" for name in names), "", "```text", notice.expandtabs(4), "```"]
    return "\n".join(lines) + "\n"
