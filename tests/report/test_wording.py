"""The words of the page, whole, in one place; other tests look at numbers and verdicts and leave the words free.

After a change of wording: `uv run python -m tests.report.test_wording` writes the file anew; read the difference.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory

from moescope.report.findings import find
from moescope.report.folder import Results
from moescope.report.page import render
from tests.report import test_cause_findings as causes
from tests.report import test_expert_findings as experts
from tests.report import test_output_findings as outputs
from tests.report import test_profile_findings as labels
from tests.report import test_weight_findings as weights
from tests.report.folders import write
from tests.report.html import Page
from tests.report.tables import everything

GOLDEN = Path(__file__).with_name("golden_page.txt")


def tables() -> dict:
    """Every table that findings are drawn from."""
    relations = [
        weights.relations("similarity.cka", "coactivation.lift", 0.5, "output CKA, co-activation"),
        weights.relations("weights.joined_matched_cosine", "similarity.cka", 0.5, "weights, CKA"),
    ]
    return everything() | {
        "atlas_top": causes.top(),
        "atlas_relations": causes.relations(),
        "atlas_ablated": causes.ablated(),
        "similarity": experts.similarity(),
        "similarity_pairs": experts.pairs(),
        "contribution": outputs.contribution({1: [1.0, 2.0, 3.0], 2: [0.01, 0.02, 90.0], 7: [2.0, 2.0, 2.0]}),
        "contribution_top": outputs.leaders(),
        "map_quality": outputs.quality(),
        "profile": labels.profiles(),
        "profile_best": labels.profiles(),
        "weights": weights.weights(),
        "relations_pooled": weights.pd.DataFrame(relations),
    }


def written() -> str:
    """The page's text, each of its paragraphs once; numbers in tables are others' matter."""
    with TemporaryDirectory() as folder:
        path = write(
            Path(folder) / "report", tables(), analyses=[*["entropy", "usage", "vocabulary", "paths", "atlas"]]
        )
        pieces = [" ".join(piece.split()) for piece in Page(render(path)).paragraphs]
        topics = {finding.topic for finding in find(Results.read(path))}
    assert len(topics) >= 10, "a table that no finding is drawn from"
    prose = [piece for piece in dict.fromkeys(pieces) if re.search(r"[^\W\d_]{2}", piece)]
    return "\n".join(line for piece in prose for line in [*textwrap.wrap(piece, 118), ""])


def test_the_page_says_what_it_said() -> None:
    assert written() == GOLDEN.read_text("utf-8"), "new words? write the file anew, as the head of this module says"


if __name__ == "__main__":
    GOLDEN.write_text(written(), "utf-8")
