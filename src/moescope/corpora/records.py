"""Records (mappings of fields) into documents: which field holds what, and what is counted where it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moescope.corpora.chat import joined, messages_of
from moescope.corpora.document import Document, readable, stable_hash
from moescope.corpora.problems import Problems
from moescope.errors import UsageError

# Read where no text field is named: the first of these that a record has.
TEXT_FIELDS = ("text", "messages")

# What is longer names no domain.
MAX_DOMAIN_CHARACTERS = 1_000

# What the side of a message is called: a domain field `messages.role` makes each role a domain.
_ROLE_FIELDS = ("role", "from")


@dataclass(frozen=True)
class Fields:
    """Where a record keeps what we read.

    Attributes:
        texts: Fields of the text, the first that a record has; a dotted path goes into nested records
            (`meta.pile_set_name`). A field may hold a conversation (`messages`) instead of a text.
        domain: Field of the domain, likewise; of a conversation, `messages.role` makes each role a domain. None where
            the domain does not come from the record.
    """

    texts: tuple[str, ...] = TEXT_FIELDS
    domain: str | None = None

    @classmethod
    def of(cls, text_field: str | None, domain_field: str | None) -> Fields:
        """The fields as a caller names them.

        Raises:
            UsageError: A field is no name.
        """
        for name, field in (("text_field", text_field), ("domain_field", domain_field)):
            if field is not None and (not isinstance(field, str) or not field):
                raise UsageError(f"{name} is {field!r}", expected="the name of a field, such as 'text'")
        return cls(TEXT_FIELDS if text_field is None else (text_field,), domain_field)

    @property
    def text(self) -> str:
        """The field that is looked at first."""
        return self.texts[0]

    @property
    def columns(self) -> set[str]:
        """Top-level names under which all that is read may lie."""
        fields = [*self.texts, *([self.domain] if self.domain is not None else [])]
        return {*fields, *(field.split(".")[0] for field in fields), "source", "licence", "license"}

    @property
    def by_role(self) -> bool:
        """Whether each role of a conversation is a domain."""
        return any(self.domain == f"{text}.{role}" for text in self.texts for role in _ROLE_FIELDS)


def lookup(record: Mapping[str, Any], field: str) -> Any:
    """The value of a field: of that very name, else along the dotted path; None where there is none."""
    if field in record:
        return record[field]
    value: Any = record
    for part in field.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def domains_of(record: Mapping[str, Any], fields: Fields) -> list[str]:
    """The record's domain, or each role of its conversation; none where it names none."""
    if fields.by_role:
        chat = messages_of(_text(record, fields))
        roles = dict.fromkeys(message.role for message in chat[0]) if chat is not None else {}
        return [role for role in roles if len(role) <= MAX_DOMAIN_CHARACTERS]
    value = lookup(record, fields.domain) if fields.domain is not None else None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str | int | float) or (isinstance(value, float) and math.isnan(value)):
        return []
    name, cut = readable(str(value))
    return [name] if not cut and len(name) <= MAX_DOMAIN_CHARACTERS else []


def _text(record: Mapping[str, Any], fields: Fields) -> Any:
    return next((value for field in fields.texts if (value := lookup(record, field)) is not None), None)


def to_documents(
    record: Mapping[str, Any],
    fields: Fields,
    problems: Problems,
    *,
    place: str,
    document_id: str | None = None,
    domain: str | None = None,
    source: str = "",
) -> Iterator[Document]:
    """Yields a record's document, or one for each role of its conversation; none, counted, without text or domain.

    Args:
        record: What one line or row holds.
        fields: Where its text and domain are.
        problems: Counts what was skipped or repaired.
        place: Where the record is, to be shown.
        document_id: Its id; None: a hash of its text.
        domain: Its domain where that does not come from the record.
        source: Where it comes from, unless the record says.
    """
    value = _text(record, fields)
    chat = messages_of(value)
    if chat is not None:
        value = joined(chat[0])
    elif isinstance(value, bytes):
        value = decode(value, problems, place)
    if not isinstance(value, str) or not value.strip():
        problems.add("no_text", place)
        return
    domains = domains_of(record, fields) if fields.domain is not None else [domain] if domain is not None else []
    if not domains:
        problems.add("no_domain", place)
        return
    text, truncated = readable(value)
    messages, cut = chat if chat is not None else ((), False)
    if truncated or cut:
        problems.add("long", place)
    if document_id is None:
        document_id = f"{stable_hash(value) & 0xFFFF_FFFF_FFFF_FFFF:016x}"
    for name in domains:
        yield Document(
            text=text,
            domain=name,
            document_id=f"{document_id}#{name}" if fields.by_role else document_id,
            source=_field(record, "source") or source,
            license=_field(record, "licence") or _field(record, "license"),
            truncated=cut if messages else truncated,
            messages=messages,
            role=name if fields.by_role else None,
        )


def _field(record: Mapping[str, Any], field: str) -> str:
    value = record.get(field)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return readable(value)[0] if isinstance(value, str) else ""


def decode(data: bytes, problems: Problems, place: str) -> str:
    """UTF-8 text; invalid bytes become U+FFFD and are counted once a document."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        problems.add("invalid_utf8", place)
        return data.decode("utf-8", "replace")
