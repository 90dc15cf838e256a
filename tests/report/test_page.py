"""The page: whole, self-contained, and nothing that comes from a model or a corpus is ever markup."""

import re

import pandas as pd
import pytest

from moescope.analyses import registry, words
from moescope.analyses.finding import chance_of, facts, find
from moescope.errors import ResultsError
from moescope.report.page import PAGE, SINGLE_FILE, render, spark, write
from moescope.results import DomainSample
from moescope.results.reading import Results
from tests.report import tables
from tests.report.folders import write as write_folder
from tests.report.html import Page
from tests.report.reading import unsaid

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
FIGURES = ("router_decisiveness", "usage_load", "something_new")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(
        tmp_path_factory.mktemp("results") / "report",
        tables.everything(),
        FIGURES,
        analyses=["entropy", "usage", "vocabulary", "coactivation", "paths", "novel"],
    )


@pytest.fixture(scope="module")
def page(folder):
    return Page(render(folder))


def test_every_element_is_closed(page):
    assert page.open == []


def test_it_leads_with_what_and_what_was_found(folder, page):
    assert page.all("title")
    results = Results.read(folder)
    found = [*find(results), *facts(results)]
    (heading,) = (text for text in page.headings if "toy" in text)
    assert unsaid(heading, "8", "2") == []
    titles = [" ".join(one.title.split()) for one in found]
    assert len(titles) > 5
    places = [page.text.index(title) for title in titles]
    assert places == sorted(places)
    assert page.text.rindex(heading) < places[0]
    assert places[-1] < page.text.index("max_violation")  # tables come after
    assert "91.2\N{NO-BREAK SPACE}%" in " ".join(page.words)


def test_each_finding_has_its_verdict_and_facts_have_none(folder):
    weak = tables.everything() | {"paths": tables.paths(dependence_p_value=[0.7])}
    weak["coactivation"] = tables.coactivation(top_p_value=[float("nan")] * 2)
    results = Results(folder, Results.read(folder).manifest, given=weak)
    assert {finding.verdict for finding in find(results)} == {"shown", "not shown", "not testable"}
    page = Page(render(write_folder(folder.parent / "weak", weak, analyses=["usage", "paths", "coactivation"])))
    items = [attributes["class"] for attributes in page.all("li") if attributes.get("class")]
    assert items == [finding.verdict.replace(" ", "-") for finding in find(results)]
    for finding in find(results):
        # Verdict and adjusted p-value stand before the title.
        before = page.text[: page.text.index(" ".join(finding.title.split()))]
        adjusted = "" if finding.p_value is None else f" (adjusted {chance_of(finding.p_value)})"
        assert before.rstrip().endswith(f"· {finding.verdict}{adjusted}"), before[-80:]
    assert page.text.index("Facts of this sample") < page.text.index(facts(results)[0].title)


def test_nothing_is_requested_from_anywhere(folder, page):
    text = render(folder)
    for _, attributes in page.elements:
        for name in ("src", "srcset", "data", "action", "poster", "background"):
            assert (attributes.get(name) or "data:").startswith(("data:", "figures/"))
    for link in page.all("link"):
        assert link["href"].startswith("data:")
    for link in page.all("a"):
        assert not re.match(r"[a-z]+:|//", link["href"]), link
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|import\(", text)
    assert "http://" not in text
    assert "https://" not in text
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_links_lead_to_what_is_there(folder, page):
    ids = {attributes["id"] for _, attributes in page.elements if attributes.get("id")}
    for link in page.all("a"):
        target = link["href"]
        assert (target[1:] in ids) if target.startswith("#") else (folder / target).is_file(), target


def test_figures_are_described_and_shown_from_the_folder_when_they_are_scrolled_to(folder, page):
    images = page.all("img")
    assert len(images) == len(FIGURES)
    for image in images:
        assert (folder / image["src"]).is_file()
        assert image["loading"] == "lazy"
        assert "Line chart" in image["alt"]
    assert not {image["alt"] for image in images} & {words.caption(name) for name in FIGURES}


def test_links_have_names_of_their_own(page):
    named = [link.get("aria-label") for link in page.all("a") if not link["href"].startswith("#")]
    assert all(named)
    assert len(set(named)) == len(named)


def test_sections_are_folded_and_findings_are_not(page):
    folds = [attributes for tag, attributes in page.elements if tag == "details"]
    assert folds
    assert not any("open" in attributes for attributes in folds)
    order = [attributes["id"] for attributes in page.all("section")]
    assert order[0] == "findings"


def test_one_file_needs_nothing_beside_it(folder):
    text = render(folder, single_file=True)
    page = Page(text)
    assert page.open == []
    assert len(page.all("img")) == len(FIGURES)
    assert all(image["src"].startswith("data:image/png;base64,iVBOR") for image in page.all("img"))
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert "img-src data:;" in text


def test_the_page_says_how_much_of_a_document_was_read_at_most(tmp_path):
    folder = write_folder(tmp_path / "out", {}, options={"window": 1234})
    text = Page(render(folder)).text
    assert "at most 1,234 tokens of each" in text
    assert "Effective window" in text


def test_a_figure_of_no_known_analysis_is_shown_all_the_same(page):
    assert "Something new." in page.text
    assert "Other" in page.text


def test_tables_can_be_sorted_by_keyboard(page):
    heads = [attributes for attributes in page.all("th") if "aria-sort" in attributes]
    assert heads
    assert len(page.all("button")) == len(heads)


def test_dark_and_light(folder):
    assert "prefers-color-scheme: dark" in render(folder)


def test_names_are_text_and_never_markup(tmp_path):
    frames = tables.everything()
    for name in ("specialists", "router_entropy"):
        frames[name]["domain"] = frames[name]["domain"].replace("verse", HOSTILE)
    frames["tokens"] = pd.DataFrame({"layer": [1], HOSTILE: [HOSTILE]})
    folder = write_folder(
        tmp_path / "out",
        frames,
        model=HOSTILE,
        corpus=HOSTILE,
        revision=HOSTILE,
        notes=[HOSTILE],
        domains=[DomainSample(name=HOSTILE, group=HOSTILE, num_tokens=1000, num_documents=30)],
        options={"command_line": HOSTILE},
    )
    text = render(folder)
    page = Page(text)
    assert page.open == []
    assert text.count("<script") == 1
    assert not page.all("img")
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(HOSTILE) >= 8


def test_parts_that_were_not_run_leave_no_hole(tmp_path):
    folder = write_folder(tmp_path / "out", {"router_entropy": tables.entropy()}, analyses=["entropy"])
    page = Page(render(folder))
    assert page.open == []
    results = Results.read(folder)
    assert find(results) == []
    (fact,) = facts(results)
    assert fact.title in page.text
    for part in ("usage", "vocabulary", "paths"):
        assert part not in {link["href"].lstrip("#") for link in page.all("a")}


def test_a_folder_without_tables_makes_a_page(tmp_path):
    page = Page(render(write_folder(tmp_path / "out", {}, analyses=[])))
    assert page.open == []
    assert find(Results.read(tmp_path / "out")) == []
    assert "router entropy" not in page.text  # no key numbers, no definitions


def test_large_tables_are_linked_not_shown(tmp_path):
    frame = pd.DataFrame({"layer": range(5000)})
    page = Page(render(write_folder(tmp_path / "out", {"usage": frame.assign(domain="x")}, analyses=["usage"])))
    assert "5,000 rows" in page.text
    assert "4,999" not in page.text
    assert any(link["href"] == "tables/usage.csv" for link in page.all("a"))


def test_write_puts_the_page_into_the_folder(tmp_path):
    folder = write_folder(tmp_path / "out", {})
    before = {path.name for path in folder.iterdir()}
    assert write(folder) == folder / PAGE
    assert {path.name for path in folder.iterdir()} == before | {PAGE}
    assert write(folder, single_file=True) == folder / SINGLE_FILE
    assert {path.name for path in folder.iterdir()} == before | {PAGE, SINGLE_FILE}


def test_what_is_no_results_folder_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="no results folder"):
        render(tmp_path)
    (tmp_path / "manifest.json").write_text('{"command": 3}')
    with pytest.raises(ResultsError, match="is no manifest of moescope"):
        Results.read(tmp_path)


def test_domains_that_look_like_numbers_or_nothing_stay_text(tmp_path):
    frame = tables.entropy().assign(domain=["all", "1984", "NA"] * 2)
    read = Results.read(write_folder(tmp_path / "out", {"router_entropy": frame})).table("router_entropy")
    assert list(read["domain"]) == ["all", "1984", "NA"] * 2


def test_spark_goes_from_lowest_to_highest():
    line = spark([1.0, 3.0, float("nan"), 2.0])
    heights = [y for _, y in line.dots]
    assert heights[1] < heights[2] < heights[0]
    assert spark([1.0]) is None
    assert spark([float("nan"), 1.0]) is None


def test_words_are_known_for_every_question():
    for entry in registry.ENTRIES:
        assert words.title(entry.name) == entry.title
        assert words.definitions(entry.name), entry.name
