"""Writes docs/profile.schema.json, the JSON Schema of an expert's profile: `python docs/make_profile_schema.py`."""

from __future__ import annotations

import json
from pathlib import Path

from moescope.analyses.profile.schema import json_schema

SCHEMA = Path(__file__).parent / "profile.schema.json"


def text() -> str:
    """The file as it should be."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(text(), encoding="utf-8", newline="\n")
