"""The words of the page, whole, in one place; other tests look at numbers and verdicts and leave the words free.

After a change of wording: `uv run python -m tests.report.test_golden_page` writes the file anew; read the difference.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from moescope.analyses.finding import facts, find
from moescope.report.page import render
from moescope.results.reading import Results
from tests.analyses.atlas import test_findings as atlas
from tests.analyses.contribution import test_findings as contribution
from tests.analyses.map import test_findings as projection
from tests.analyses.profile import test_findings as labels
from tests.analyses.relations import test_findings as relations
from tests.analyses.similarity import test_findings as similarity
from tests.analyses.weights import test_findings as weights
from tests.report.folders import write
from tests.report.html import Page
from tests.report.tables import everything

GOLDEN = Path(__file__).with_name("golden_page.txt")


def tables() -> dict:
    """Every table that findings and facts are drawn from."""
    pooled = [
        relations.relations("similarity.cka", "coactivation.lift", 0.5, "output CKA, co-activation"),
        relations.relations("weights.joined_matched_cosine", "similarity.cka", 0.5, "weights, CKA"),
    ]
    saliency = {1: [1.0, 2.0, 3.0], 2: [0.01, 0.02, 90.0], 7: [2.0, 2.0, 2.0]}
    return everything() | {
        "atlas_top": atlas.top(),
        "atlas_relations": atlas.relations(),
        "atlas_ablated": atlas.ablated(),
        "similarity": similarity.similarity(),
        "similarity_pairs": similarity.pairs(),
        "contribution": contribution.contribution(saliency),
        "contribution_top": contribution.leaders(),
        "map_quality": projection.quality(),
        "profile": labels.profiles(),
        "profile_best": labels.profiles(),
        "weights": weights.weights(),
        "relations_pooled": pd.DataFrame(pooled),
    }


def written() -> str:
    """The page's text, each of its paragraphs once; numbers in tables are others' matter."""
    with TemporaryDirectory() as folder:
        path = write(
            Path(folder) / "report", tables(), analyses=[*["entropy", "usage", "vocabulary", "paths", "atlas"]]
        )
        pieces = [" ".join(piece.split()) for piece in Page(render(path)).paragraphs]
        read = Results.read(path)
        topics = {made.topic for made in (*find(read), *facts(read))}
    assert len(topics) >= 12, "a table that no finding or fact is drawn from"
    prose = [piece for piece in dict.fromkeys(pieces) if re.search(r"[^\W\d_]{2}", piece)]
    return "\n".join(line for piece in prose for line in [*textwrap.wrap(piece, 118), ""])


def test_the_page_says_what_it_said() -> None:
    assert written() == GOLDEN.read_text("utf-8"), "new words? write the file anew, as the head of this module says"


if __name__ == "__main__":
    GOLDEN.write_text(written(), "utf-8")
