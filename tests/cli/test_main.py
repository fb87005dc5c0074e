"""What every command has in common: help, speed, clean streams, exit codes."""

import json
import shlex
import signal
import subprocess
import sys
import time

import pytest

from gossamer.cli import main as entry
from gossamer.core.errors import ModelError, RequirementError

VERBS = ("inspect", "estimate", "evaluate", "generate", "optimize", "apply", "compare", "export", "report")


def test_help_lists_the_verbs_and_is_fast(program) -> None:
    started = time.perf_counter()
    ended = program("--help")
    seconds = time.perf_counter() - started
    assert ended.code == 0
    assert ended.err == ""
    assert all(f"  {verb} " in ended.out for verb in VERBS)
    assert seconds < 2, "help imports something heavy"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from gossamer.cli.main import run; run(['optimize', '--help']);"
        "print([m for m in ('torch', 'transformers', 'numpy', 'scipy', 'rich', 'plotly') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_explains_itself_with_one_example_that_parses(gossamer, verb: str, monkeypatch) -> None:
    ended = gossamer(verb, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: gossamer {verb} ")
    example = " ".join(ended.out.partition("Example: ")[2].split())
    words = shlex.split(example)
    assert words[:2] == ["gossamer", verb]

    def reached(*_: object, **__: object) -> None:
        raise RequirementError("reached the job")

    monkeypatch.setattr(f"gossamer.cli.{verb}.job", reached)
    assert "reached the job" in gossamer(*words[1:]).err


def test_options_mean_the_same_everywhere(gossamer) -> None:
    said = {}
    for name in VERBS:
        text = gossamer(name, "--help").out
        for option in ("--seed", "--threads", "--out", "--json", "--task", "--data", "--limit"):
            if f"  {option} " in text:
                said.setdefault(option, set()).add(" ".join(text.split(f"  {option} ")[1].split("  --")[0].split()))
        assert "  --json " in text
    assert {option for option, ways in said.items() if len(ways) > 1} == set()


def test_version(gossamer) -> None:
    ended = gossamer("--version")
    assert ended.code == 0
    assert ended.out.startswith("gossamer 0.")


def test_without_arguments_help_is_shown(gossamer) -> None:
    assert gossamer().out == gossamer("--help").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimise"], "Did you mean 'optimize'"),
        (["inspect"], "Missing argument 'MODEL'"),
        (["inspect", "a", "b"], "unexpected extra argument"),
        (["optimize", "tiny-lm"], "Missing option '--out'"),
        (["optimize", "tiny-lm", "--out", "x", "--effort", "heroic"], "'quick', 'standard', 'thorough'"),
        (["optimize", "tiny-lm", "--out", "x", "--seed", "-1"], "--seed"),
        (["optimize", "tiny-lm", "--out", "x", "--seed", "one"], "--seed"),
        (["optimize", "tiny-lm", "--out", "x", "--memmory", "3MB"], "--memory"),
        (["evaluate", "tiny-lm", "--limit", "0"], "--limit"),
        (["evaluate", "tiny-lm", "--threads", "0"], "--threads"),
    ],
)
def test_usage_errors_are_one_sentence(gossamer, arguments: list[str], said: str) -> None:
    gossamer(*arguments).refused(said, "--help'")


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Lets every command end with this error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(entry, "app", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (
            ModelError("model x does not exist:\n give a directory"),
            2,
            "error: model x does not exist: give a directory\n",
        ),
        (RequirementError("the floor of 1 % was not met"), 1, "error: the floor of 1 % was not met\n"),
        (OSError(28, "No space left on device", "/full/a"), 2, "error: cannot use /full/a: No space left"),
        (ZeroDivisionError("by zero"), 70, "error: internal error: ZeroDivisionError: by zero"),
        (KeyboardInterrupt(), 130, "interrupted: the same command resumes"),
    ],
)
def test_each_kind_of_end_has_its_exit_code(gossamer, monkeypatch, error: BaseException, code: int, said: str) -> None:
    monkeypatch.delenv("GOSSAMER_DEBUG", raising=False)
    ends_with(monkeypatch, error)
    ended = gossamer("inspect", "x")
    assert ended.code == code
    assert ended.err.startswith(said)
    assert ended.err.count("\n") == 1
    assert "Traceback" not in ended.err


def test_debugging_shows_the_trace_of_our_own_mistakes(gossamer, monkeypatch) -> None:
    monkeypatch.setenv("GOSSAMER_DEBUG", "1")
    ends_with(monkeypatch, ZeroDivisionError("by zero"))
    assert "Traceback" in gossamer("inspect", "x").err


def test_a_reader_that_goes_away_ends_quietly() -> None:
    command = f"{shlex.quote(sys.executable)} -m gossamer optimize --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (141, "")


def test_what_a_library_prints_never_reaches_the_results(gossamer, monkeypatch, lm) -> None:
    import gossamer.models.inspect as job

    def noisy(ref: str) -> dict[str, object]:
        print("a library says hello")
        return {"parameters": 1}

    monkeypatch.setattr(job, "inspect", noisy)
    ended = gossamer("inspect", lm, "--json")
    assert json.loads(ended.out) == {"parameters": 1}
    assert "hello" in ended.err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_with_130_and_says_how_to_go_on(sent: signal.Signals) -> None:
    code = (
        "import sys, time, gossamer.cli.main as m\n"
        "def wait(*_, **__): print('ready', flush=True); time.sleep(60)\n"
        "m.app = wait\n"
        "m.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(sent)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.startswith("interrupted: the same command resumes")


def test_what_compiled_libraries_print_stays_out_of_the_result():
    code = """
import ctypes
from gossamer.cli.terminal import job, show
with job():
    print("from Python")
    ctypes.CDLL(None).printf(b"from C, not flushed")
show({"answer": 42}, True, print)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"answer": 42}
    assert "from Python" in done.stderr
    assert "from C" in done.stderr
