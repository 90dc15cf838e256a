"""Public text is plain technical English in American spelling: help pages, words, docs, docstrings and messages."""

import ast
import re
from pathlib import Path

import pytest

from moescope.analyses import registry, words
from moescope.cli.app import build
from moescope.cli.failures import launch

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "moescope").rglob("*.py"))
# What records the past keeps its words.
DOCS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "training" / "README.md"]
    if path.name not in ("log.md", "CHANGELOG.md")
)
COMMANDS = [
    *(entry.name for kind in ("question", "comparison") for entry in registry.entries(kind)),
    "info", "report", "intervene",
]  # fmt: skip

PHRASES = [
    r"foretell", r"foretold", r"puts? out\b", r"\blikeness", r"\blike weights", r"how decided", r"decisiveness",
    r"least sure", r"\bsurest\b", r"for no reason", r"re-?drawn", r"point anywhere", r"had no say", r"choosing half",
    r"measured half", r"flattered", r"flatters", r"\ba coin\b", r"\bsurely\b", r"\bforemost\b", r"\bcommonest\b",
    r"\bown lead\b", r"who an expert is", r"turned (up|down|off)", r"kinds of text", r"tells? most", r"had no say",
    r"a twentieth of the pairs", r"did something", r"next to nothing", r"what fell short", r"what a model is",
    r"\bdear\b", r"without more ado", r"at first look", r"\bno one asks\b", r"\bchatter\b", r"\bloudness\b",
]  # fmt: skip
# The thesis's heading stands in brackets, for its readers; records of corpora may have a field "licence".
ALLOWED = re.compile(r"\blicence\b|router_decisive(ness)?|\(decisiveness\)|router_decisive\.py")
BRITISH = [
    r"\w*(special|normal|organ|recogn|summar|final|general|optim|minim|maxim|initial|serial|visual|random|penal|"
    r"categor|equal|util|real|standard|parametr|token|regular|quant|stabil|symmetr|vector)is(e|es|ed|ing|ation|ations|er)\b",
    r"\w*(neighbour|colour|behaviour|favour|honour|labour|flavour|rumour)\w*", r"\bgrey\w*", r"\bcentre[ds]?\b",
    r"\bcentring\b", r"\blicenced?\b", r"\banalys(e|ed|ing)\b", r"\blabell\w+", r"\bmodell\w+", r"\bcancell(ed|ing)\b",
    r"\btravell\w+", r"\bcatalogue\b", r"\bartefact\w*", r"\bmetres?\b", r"\bjudgement\b", r"\bwhilst\b",
]  # fmt: skip
BANNED = re.compile("|".join(f"(?:{pattern})" for pattern in [*PHRASES, *BRITISH]), re.IGNORECASE)
ENDS_LIKE_BRITISH = re.compile(
    r"otherwise|precise\w*|concise|exercise[sd]?|promise[sd]?|raise[sd]?|noise|revis\w+|advis\w+|likewise|compris\w+|"
    r"surpris\w+|supervis\w+|rise[sn]?|wise|premise[sd]?",
    re.IGNORECASE,
)


def banned(text: str) -> list[str]:
    text = ALLOWED.sub("", text)
    return sorted({found[0] for found in BANNED.finditer(text) if not ENDS_LIKE_BRITISH.fullmatch(found[0])})


def strings(path: Path) -> str:
    """What a file says: its docstrings and messages."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return "\n".join(
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_and_messages(path: Path):
    assert banned(strings(path)) == []


@pytest.mark.parametrize("path", DOCS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs(path: Path):
    assert banned(path.read_text(encoding="utf-8")) == []


def test_definitions_and_captions():
    for entry in registry.ENTRIES:
        text = "\n".join([entry.summary, *words.definitions(entry.name), *words.definitions(entry.name).values()])
        assert banned(text) == [], entry.name
    assert banned("\n".join(words._captions().values())) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_pages(command: str, capsys):
    assert launch(build(), [command, "--help"]) == 0
    assert banned(capsys.readouterr().out) == []


def test_the_list_finds_what_it_should():
    assert banned("Experts with like weights put out alike; a coin.") == ["a coin", "like weights", "put out"]
    assert banned("neighbours, specialised, colour, labelled") == ["colour", "labelled", "neighbours", "specialised"]
    assert banned("otherwise precise noise is raised; analyses are analyses") == []
