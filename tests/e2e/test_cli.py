"""The command line as a user meets it: exit codes, one JSON document, plain text in pipes, colour in terminals, nothing heavy imported."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import ROOT, Answer, environment, process
from typer.testing import CliRunner

from llamamath import __version__
from llamamath.cli import fit as fit_command
from llamamath.cli import main
from llamamath.planner.fit.fitting import estimate_on
from llamamath.planner.job_files.job_file import parse_job
from llamamath.planner.probe.devices import device_for
from llamamath.profiles.recipes import recipe_names

Call = Callable[..., Answer]
COMMANDS = ("plan", "fit", "profiles", "trace", "doctor", "accuracy")
HEAVY = ("torch", "transformers", "numpy", "trl", "peft", "pandas")
ESCAPE = "\x1b["
COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-7]|9[0-7]|4[0-7])[0-9;]*m")
PAPER = ("fit", "--recipe", "llama-math-90b", "--gpu", "rtx3090")
SMALL = ("fit", "llama-3.2-1b", "--gpu", "rtx3060")


# -- help, version, weight


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    answer = CliRunner().invoke(main.app, [command, "--help"])
    assert answer.exit_code == 0
    assert f"llamamath {command}" in answer.output or command in answer.output


def test_version(call: Call) -> None:
    assert call("--version") == Answer(0, f"llamamath {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["plan", "-o", "-"], list(SMALL), ["fit", "--jobs", os.devnull], ["fit"], ["profiles"], ["doctor"]], ids=str
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = f"import sys; from llamamath.cli.main import run; run({arguments!r})"
    code += f"; print([module for module in {HEAVY!r} if module in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=120, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


# -- exit codes


def test_fits_ends_with_0(call: Call) -> None:
    answer = call(*SMALL)
    assert answer.code == 0 and "FITS" in answer.out and answer.err == ""


def test_does_not_fit_ends_with_1_and_says_what_helps(call: Call) -> None:
    answer = call("fit", "llama-3.1-70b", "--gpu", "rtx3060")
    assert answer.code == 1
    assert "DOES NOT FIT" in answer.out and "what would help" in answer.out


def test_tight_ends_with_1_and_says_so(call: Call, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: llama-3.2-1b\nmethod: sft\nmax_length: 4096\n")
    job = parse_job({"model": "llama-3.2-1b", "method": "sft", "max_length": 4096})
    from llamamath.planner.model_files.config_file import resolve_model

    peak = estimate_on(job, resolve_model(job.model), device_for("12GiB")[0]).peak
    between = f"{(peak.device_bytes + peak.high_bytes) // 2}B"
    answer = call("fit", "--job", "job.yaml", "--gpu", between)
    assert answer.code == 1
    assert "TIGHT" in answer.out and "exit code 1" in answer.out


def test_missing_hardware_ends_with_3(call: Call) -> None:
    answer = call(*SMALL[:2], "--gpu", "cuda:0")
    assert answer.code == 3 and answer.err.startswith("error: ")


def test_usage_ends_with_2_and_names_the_help(call: Call) -> None:
    answer = call("fit", "--bogus")
    assert answer.code == 2 and "--bogus" in answer.err and "llamamath fit --help" in answer.err and answer.out == ""


def test_no_command_shows_help(call: Call) -> None:
    answer = call()
    assert answer.code == 2 and "Usage" in answer.out + answer.err


def test_interrupt_ends_with_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit_command, "_run", interrupted)
    assert call("fit").code == 130


def test_our_own_mistake_is_one_line(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise RuntimeError("something\nodd")

    monkeypatch.setattr(fit_command, "_run", broken)
    answer = call("fit", "--json")
    assert answer.code == 1
    assert "internal error: RuntimeError: something odd" in answer.err and "Traceback" not in answer.err
    assert json.loads(answer.out)["error"]["type"] == "InternalError"
    monkeypatch.setenv("LLAMAMATH_DEBUG", "1")
    with pytest.raises(RuntimeError):
        main.run(["fit"])


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text('{"model": "llama-3.2-1b", "method": "sft", "max_length": 512}\n' * 500)
    command = [sys.executable, "-m", "llamamath", "fit", "--jobs", str(jobs), "--gpu", "8GiB", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_said() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "llamamath", *SMALL]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), check=False)
    assert done.returncode == 3 and done.stderr.startswith("error: cannot write to standard output") and "Traceback" not in done.stderr


# -- JSON


@pytest.mark.parametrize(
    "arguments",
    [
        SMALL,
        ("fit", "llama-3.1-70b", "--gpu", "rtx3060"),
        ("fit", "--recipe", "gsm8k-3b", "--gpu", "rtx3060", "--memory-model", "paper"),
        ("fit", "llama-3.2-1b", "--gpu", "rtx3060", "--gpu", "rtx3090"),
        ("fit",),
        ("fit", "llama-3.2-1b", "--gpu", "8GiB", "--max", "context"),
        ("plan", "--gpu", "rtx3060"),
        ("plan", "--gpu", "auto"),
        ("plan", "llama-3.1-70b", "--gpu", "8GiB"),
        ("plan", "--recipe", "gsm8k-3b", "--gpu", "rtx3060"),
        ("profiles",),
        ("profiles", "rtx3090"),
        ("doctor",),
        ("fit", "no-such-model", "--gpu", "rtx3060"),
        ("fit", "--gpu"),
        ("plan", "--hours", "-1"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_json_is_one_document_and_nothing_else(call: Call, arguments: tuple[str, ...]) -> None:
    answer = call(*arguments, "--json")
    document = json.loads(answer.out)
    assert document["schema_version"] == 1
    assert ("error" in document) == (answer.code > 1)


# -- terminals, pipes, encodings


def in_terminal(*arguments: str, columns: int = 80, **changes: str) -> str:
    """What the command writes to a terminal."""
    ours, theirs = pty.openpty()
    variables = environment(TERM="xterm-256color", COLUMNS=str(columns), **changes)
    with subprocess.Popen([sys.executable, "-m", "llamamath", *arguments], stdout=theirs, stderr=theirs, env=variables) as running:
        os.close(theirs)
        text = b""
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:
                break
            if not part:
                break
            text += part
        running.wait()
    os.close(ours)
    return text.decode()


def test_colour_in_a_terminal_and_none_with_no_color() -> None:
    assert COLOUR.search(in_terminal(*SMALL))
    plain = in_terminal(*SMALL, NO_COLOR="1")
    assert not COLOUR.search(plain) and "WWW" in plain


def test_pipes_get_plain_text() -> None:
    answer = process(*SMALL)
    assert ESCAPE not in answer.out and "WWW" in answer.out
    assert all(line == line.rstrip() for line in answer.out.splitlines())


@pytest.mark.parametrize("columns", [20, 40, 80, 120])
@pytest.mark.parametrize(
    "arguments", [SMALL, ("fit",), ("fit", "--recipe", "llama-math-90b", "--gpu", "rtx3090"), ("plan", "--gpu", "rtx3060")]
)
def test_every_width(call: Call, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = call(*arguments).out.splitlines()
    if columns >= 80:
        assert max(map(len, lines)) <= columns


def test_ascii_output() -> None:
    answer = process(*SMALL, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert answer.code == 0 and answer.out.isascii() and "?" not in answer.out.replace("?)", "")


# -- what fit and plan say


def test_jobs_answers_each_line_in_order(call: Call, tmp_path: Path) -> None:
    good = {"model": "llama-3.2-1b", "method": "sft", "max_length": 512}
    lines = [good, {**good, "max_length": -1}, {**good, "model": "llama-3.1-70b"}, "nonsense", {**good, "model": "no/such"}]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answer = call("fit", "--jobs", "jobs.jsonl", "--gpu", "8GiB", "--json")
    found = [json.loads(line) for line in answer.out.splitlines()]
    assert [one.get("verdict", "error") for one in found] == ["fits", "error", "does_not_fit", "error", "error"]
    assert found[1]["error"]["field"] == "max_length" and found[1]["error"]["line"] == 2
    assert answer.code == 2
    for count, code in ((1, 0), (2, 1)):
        (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (lines[0], lines[2])[:count]))
        assert call("fit", "--jobs", "jobs.jsonl", "--gpu", "8GiB", "--json").code == code


def test_jobs_from_standard_input() -> None:
    answer = process(
        "fit", "--jobs", "-", "--gpu", "8GiB", "--json", stdin='{"model": "llama-3.2-1b", "method": "sft", "max_length": 512}\n'
    )
    assert answer.code == 0 and json.loads(answer.out)["verdict"] == "fits"


def test_a_flag_beats_the_file_beats_the_recipe_beats_the_default(call: Call, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("model: llama-3.2-1b\nmethod: sft\nmax_length: 512\nlora: {r: 8, lora_dropout: 0.1}\n")
    answer = call("fit", "--job", "job.yaml", "--lora-r", "4", "--gpu", "8GiB", "--json")
    document = json.loads(answer.out)
    assert document["job"]["lora"]["r"] == 4 and document["job"]["lora"]["lora_dropout"] == 0.1
    origins = document["origins"]
    assert origins["lora.r"] == "flag" and origins["lora.lora_dropout"] == "file job.yaml" and origins["optim"] == "default"
    recipe = json.loads(call("fit", "--recipe", "llama-math-1b", "--batch", "4", "--gpu", "8GiB", "--json").out)["stages"][0]
    assert recipe["origins"]["per_device_train_batch_size"] == "flag" and recipe["origins"]["beta"] == "recipe llama-math-1b"
    shown = call("fit", "--recipe", "llama-math-1b", "--batch", "4", "--gpu", "8GiB").out
    assert "where the values come from" in shown and "recipe llama-math-1b" in shown


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_is_judged_and_planned(call: Call, recipe: str) -> None:
    judged = call("fit", "--recipe", recipe, "--gpu", "rtx3090")
    assert judged.code in (0, 1) and "what the paper leaves open" in judged.out
    planned = call("plan", "--recipe", recipe, "--gpu", "rtx3090", "--json")
    assert planned.code in (0, 1) and json.loads(planned.out)["schema_version"] == 1


def test_the_90b_recipe_shows_the_papers_claim_and_the_arithmetic(call: Call) -> None:
    out = " ".join(call(*PAPER).out.split())
    for words in ("24 GB of memory (Table 4", "DOES NOT FIT", "86,413,148,160 x 0.5159 B = 44.6 GB", "eq. 4"):
        assert words in out


def test_plan_is_written_checked_and_refused(call: Call, tmp_path: Path) -> None:
    answer = call("plan", "llama-3.2-1b-instruct", "--gpu", "rtx3060", "--samples", "1000")
    assert answer.code == 0 and (tmp_path / "plan.yaml").is_file() and "plan.yaml" in answer.err
    assert call("fit", "--plan", "plan.yaml", "--gpu", "rtx3060").code == 0
    again = call("fit", "--plan", "plan.yaml", "--gpu", "3GiB")
    assert again.code == 1 and "DOES NOT FIT" in again.out
    printed = call("plan", "llama-3.2-1b-instruct", "--gpu", "rtx3060", "--samples", "1000", "-o", "-")
    assert printed.out == (tmp_path / "plan.yaml").read_text()


def test_plan_without_a_gpu_says_what_was_looked_at(call: Call) -> None:
    answer = call("plan")
    assert answer.code == 0
    assert answer.out.startswith("looked at: ") and "CPU" in answer.out


def test_nothing_fits_gives_shortfall_and_changes(call: Call, tmp_path: Path) -> None:
    answer = call("plan", "llama-3.1-70b", "--gpu", "8GiB")
    assert answer.code == 1 and not (tmp_path / "plan.yaml").exists()
    for words in ("NOTHING FITS", "too much at the least", "what comes nearest", "what would help"):
        assert words in answer.out


def test_stages_get_files_of_their_own(call: Call, tmp_path: Path) -> None:
    assert call("plan", "--recipe", "gsm8k-3b", "--gpu", "rtx3060").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan-grpo.yaml", "plan-sft.yaml"]


def test_token_lengths_decide_the_length(call: Call, tmp_path: Path) -> None:
    (tmp_path / "lengths.txt").write_text("\n".join(["100"] * 98 + ["300", "700"]))
    document = json.loads(call("plan", "llama-3.2-1b", "--method", "sft", "--gpu", "8GiB", "--token-lengths", "lengths.txt", "--json").out)
    assert document["chosen"]["job"]["max_length"] == 320 and document["origins"]["max_length"] == "data"


def test_the_package_runs_as_a_module() -> None:
    assert process("--version", cwd=ROOT / "tests").out == f"llamamath {__version__}\n"
