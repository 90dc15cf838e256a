"""Bad input exits 2 with a remedy and writes nothing; bad surroundings exit 1; Ctrl-C leaves nothing behind."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import transformers
from cyclopts import App

from moescope.cli.failures import launch
from moescope.cli.thesis import check_topology, router_metrics
from moescope.errors import UsageError
from moescope.models import load_model
from tests.cli.conftest import write_corpus


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    folder = tmp_path_factory.mktemp("models") / "dense"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def refused(outcome, here, *said):
    assert outcome.code == 2, outcome.err
    assert outcome.err.startswith("error: ")
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    for words in said:
        assert words in outcome.err
    assert list(here.iterdir()) == [], "something was written"


def test_models_that_cannot_be_used(moescope, here, dense, shelf, tmp_path):
    (tmp_path / "empty").mkdir()
    for model, said in ((dense, "llama"), (tmp_path / "empty", "config.json"), (tmp_path / "none", "no folder")):
        refused(moescope("entropy", "--model", model, "--corpus", shelf), here, said)
        refused(moescope("info", "--model", model), here, said)


def test_layers_that_do_not_exist(moescope, here, tiny, shelf):
    refused(moescope("entropy", "--model", tiny, "--corpus", shelf, "--layers", 1, 9), here, "9", "0-3")
    refused(moescope("entropy", "--model", tiny, "--corpus", shelf, "--layers", -9), here, "-9")


def test_corpora_that_cannot_be_used(moescope, here, tiny, shelf, tmp_path):
    (tmp_path / "empty").mkdir()
    given = ["--model", tiny, "--layers", 0, "--num-tokens", 500]
    refused(moescope("usage", *given, "--corpus", tmp_path / "empty"), here)
    refused(moescope("usage", *given, "--corpus", tmp_path / "none"), here, "What to do:")
    refused(moescope("usage", *given, "--corpus", shelf, "--num-domains", 9), here, "9", "law")
    refused(moescope("usage", *given, "--corpus", shelf, "--domains", "prose"), here, "prose", "law")


def test_analyses_and_pages_that_do_not_exist(moescope, here, tiny, shelf, tmp_path):
    given = ["--model", tiny, "--corpus", shelf]
    refused(moescope("report", *given, "--analyses", "usage", "horoscope"), here, "horoscope", "coactivation")
    refused(moescope("report", "--from", tmp_path), here, "manifest.json")
    refused(moescope("report", "--from", tmp_path, "--out", "x"), here, "--out")


def test_topology_is_held_against_the_model(tiny):
    model = load_model(str(tiny), layers=[0])
    check_topology(model, num_experts=8, topk=2)
    check_topology(model, num_experts=None, topk=None)
    with pytest.raises(UsageError, match=r"--num_experts 64, but .* has 8 routed experts"):
        check_topology(model, num_experts=64, topk=2)
    with pytest.raises(UsageError, match=r"--topk 8, but .* has 2 experts per token"):
        check_topology(model, num_experts=8, topk=8)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--num_experts", 64, "--topk", 2], "--num_experts 64, but"),
        (["--num_experts", 8, "--topk", 8], "--topk 8, but"),
        (["--num_experts", 8, "--topk", 2, "--num_domains", 22], "22 domains were asked for"),
        (["--num_experts", 0], "Must be >= 1"),
    ],
)
def test_the_thesis_command_is_held_to_the_model(here, tiny, shelf, monkeypatch, capfd, given, said):
    words = ["router_metrics.py", "--model", tiny, "--corpus", shelf, "--num_tokens", 500, "--layers", 1, *given]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    assert router_metrics() == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert said in shown.err
    assert list(here.iterdir()) == []


def test_out_that_cannot_be_written_exits_1(moescope, here, tiny, shelf, tmp_path):
    (tmp_path / "file").write_text("")
    given = ["--model", tiny, "--corpus", shelf, "--layers", 0, "--num-tokens", 500]
    outcome = moescope("entropy", *given, "--out", tmp_path / "file" / "deeper")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert "--out" in outcome.err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 1, "no space left on the disk for /data/x"),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/x"), 1, "no permission for /srv/x"),
        (MemoryError(), 1, "--batch-tokens"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            1,
            "--batch-tokens",
        ),
        (UsageError("7 was given", expected="8", remedy="give 8"), 2, "7 was given\nExpected: 8\nWhat to do: give 8"),
        (KeyboardInterrupt(), 130, "nothing was written"),
    ],
)
def test_what_can_run_out_is_said_plainly(here, capfd, raised, code, said):
    app = App(suppress_keyboard_interrupt=False)

    @app.default
    def fail():
        raise raised

    assert launch(app, []) == code
    shown = capfd.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


def test_our_own_mistakes_keep_their_traceback(here):
    app = App()

    @app.default
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        launch(app, [])


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "long", 80, 100)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_stopped_in_the_middle_leaves_nothing(tiny, long, tmp_path, number, code):
    words = ["usage", "--model", tiny, "--corpus", long, "--num-tokens", 3 * 10**6, "--out", "new/mine"]
    words += ["--batch-tokens", 512]
    here = tmp_path / "here"
    here.mkdir()
    script = "import sys; from moescope.cli import main; sys.exit(main())"
    # A shell that puts the test run in the background has it ignore Ctrl-C, and children inherit that.
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, words)],
        cwd=here,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not list(here.iterdir()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
    os.kill(process.pid, number)
    assert process.wait(timeout=120) == code
    assert list(here.iterdir()) == []
    assert "Traceback" not in process.stderr.read()
