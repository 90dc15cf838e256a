"""What was skipped or repaired while reading text: counted, with the first few places."""

from __future__ import annotations

from collections import Counter

from moescope.corpora.document import MAX_CHARACTERS, MAX_RECORD_BYTES
from moescope.corpora.names import shown

MAX_EXAMPLES = 5

# One sentence a kind: singular and plural of what, and what was done about it.
KINDS = {
    "broken_json": ("broken JSON line", "broken JSON lines", "skipped"),
    "broken_row": ("broken row", "broken rows", "skipped"),
    "too_long": (
        f"record longer than {MAX_RECORD_BYTES:,} bytes",
        f"records longer than {MAX_RECORD_BYTES:,} bytes",
        "skipped",
    ),
    "expands": (
        "row group that expands to more than 500 times its size",
        "row groups that expand to more than 500 times their size",
        "skipped",
    ),
    "unclosed": (
        "file with a quote or bracket that is not closed",
        "files with quotes or brackets that are not closed",
        "read only so far",
    ),
    "same_column": ("column named like another", "columns named like others", "skipped"),
    "no_text": ("record without text in the text field", "records without text in the text field", "skipped"),
    "no_domain": ("record without a domain", "records without a domain in the domain field", "skipped"),
    "other_domain": ("record of a domain that is not listed", "records of domains that are not listed", "skipped"),
    "invalid_utf8": ("document with invalid UTF-8", "documents with invalid UTF-8", "read with U+FFFD in its place"),
    "copy": ("copy of an earlier document", "copies of earlier documents", "skipped"),
    "one_token": ("document of fewer than two tokens", "documents of fewer than two tokens", "skipped"),
    "long": (
        f"document longer than {MAX_CHARACTERS:,} characters",
        f"documents longer than {MAX_CHARACTERS:,} characters",
        "read only so far",
    ),
    "no_template": (
        "conversation read as plain text, since the tokenizer has no chat template",
        "conversations read as plain text, since the tokenizer has no chat template",
        "(messages joined by blank lines)",
    ),
    "chat_refused": (
        "conversation that the chat template refuses", "conversations that the chat template refuses", "skipped",
    ),
    "chat_changed": (
        "message that the chat template changes", "messages that the chat template changes", "read and not counted",
    ),
    "gave_up": ("stream", "streams", "left before its end: no document of a domain still wanted in a long time"),
}  # fmt: skip


class Problems:
    """Counts what can be survived, by kind; memory does not grow with the count."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {}

    def add(self, kind: str, place: str = "", count: int = 1) -> None:
        """Counts `count` cases of one of `KINDS`; `place` says where the (first) one is."""
        if kind not in KINDS:
            raise KeyError(kind)
        self.counts[kind] += count
        examples = self.examples.setdefault(kind, [])
        if place and len(examples) < MAX_EXAMPLES:
            examples.append(shown(place, 200))

    def messages(self) -> list[str]:
        """One sentence for each kind that occurred, with its count and the first few places."""
        messages = []
        for kind, (one, many, done) in KINDS.items():
            count = self.counts[kind]
            if not count:
                continue
            examples = self.examples[kind]
            places = f" ({', '.join(examples)}{', ...' if count > len(examples) else ''})" if examples else ""
            messages.append(f"{count:,} {one if count == 1 else many} {done}{places}")
        return messages
