"""`doctor`: its output for people and for programs, its exit code, and what it must not tell."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from llamamath.cli.doctor import doctor
from llamamath.cli.packages import EXTRAS, TESTED, Package, installed_packages
from llamamath.errors import UsageError
from llamamath.planner.probe.parse import parse_capture

FIXTURES = Path(__file__).parent.parent / "fixtures" / "probe"


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages as tested, so that only the machine decides."""
    packages = tuple(Package(name=name, installed=TESTED.get(name), tested=TESTED.get(name)) for names in EXTRAS.values() for name in names)
    monkeypatch.setattr("llamamath.cli.packages.installed_packages", lambda: packages)


def run(monkeypatch: pytest.MonkeyPatch, fixture: str, *arguments: str, environ: dict[str, str] | None = None) -> Result:
    captured = json.loads((FIXTURES / f"{fixture}.json").read_text(encoding="utf-8"))
    monkeypatch.setattr("llamamath.planner.probe.capture.capture_machine", lambda: captured)
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, arguments, env=environ)


def with_packages(monkeypatch: pytest.MonkeyPatch, packages: Sequence[Package]) -> None:
    monkeypatch.setattr("llamamath.cli.packages.installed_packages", lambda: tuple(packages))


@pytest.mark.usefixtures("on")
@pytest.mark.parametrize("fixture", sorted(path.stem for path in FIXTURES.glob("*.json")))
def test_plain_when_piped_and_says_what_is_broken(monkeypatch: pytest.MonkeyPatch, fixture: str) -> None:
    result = run(monkeypatch, fixture)
    broken = fixture in ("no_driver", "version_mismatch", "no_permission", "gpu_lost_midway")
    assert result.exit_code == int(broken), result.output
    assert ("problem: " in result.stdout) == broken and ("nothing is broken" in result.stdout) != broken
    assert "\x1b" not in result.stdout and "RAM: " in result.stdout and "trl 1.16.0" in result.stdout


@pytest.mark.usefixtures("on")
def test_the_gpu_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = run(monkeypatch, "two_gpus_second_visible").stdout
    assert "NVIDIA driver 580.95.05, CUDA up to 13.0" in text
    shown = "hidden from CUDA, 24.00 GiB, 23.54 GiB free, compute capability 8.6, PCIe 4.0 x16, 350 W"
    assert f"GPU 0 (NVIDIA GeForce RTX 3090): {shown}" in text


@pytest.mark.usefixtures("on")
def test_colour_only_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    forced = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    assert "\x1b[" in run(monkeypatch, "no_driver", environ=forced).stdout
    assert "\x1b[3" not in run(monkeypatch, "no_driver", environ={**forced, "NO_COLOR": "1"}).stdout


@pytest.mark.usefixtures("on")
def test_json_is_one_document_that_reads_as_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, "busy", "--json")
    document = json.loads(result.stdout)
    assert document["schema_version"] == 1 and document["packages"]["torch"] == {"installed": TESTED["torch"], "tested": TESTED["torch"]}
    assert document["findings"][0]["severity"] == "warning"
    again = json.loads((FIXTURES / "busy.json").read_text(encoding="utf-8"))
    assert parse_capture(document) == parse_capture(again)


@pytest.mark.usefixtures("on")
def test_capture_is_written_and_announced_on_stderr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "capture.json"
    result = run(monkeypatch, "a100_mig", "--json", "--capture", str(path))
    assert path.read_text(encoding="utf-8") == result.stdout and "capture written" in result.stderr
    assert list(tmp_path.iterdir()) == [path]
    failed = run(monkeypatch, "a100_mig", "--capture", str(tmp_path / "absent" / "capture.json"))
    assert isinstance(failed.exception, UsageError), "the command line turns it into exit code 2"


def test_a_real_run_names_nobody() -> None:
    code = (
        "import sys; from llamamath.cli.doctor import run_doctor; run_doctor(True);"
        "sys.stderr.write(' '.join(name for name in ('torch', 'transformers', 'numpy', 'yaml') if name in sys.modules))"
    )
    environ = {"HOME": "/home/somebody", "USER": "somebody", "HF_TOKEN": "hf_secret"}
    environ |= {"HF_HOME": "/data/somebody", "CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert json.loads(done.stdout)["environment"] == {"values": {"CUDA_VISIBLE_DEVICES": "0"}, "set": ["HF_HOME"]}
    assert "somebody" not in done.stdout and "secret" not in done.stdout
    assert done.stderr == "", "no heavy imports"


@pytest.mark.parametrize(
    ("torch", "fixture", "words"),
    [
        ("2.13.0+cpu", "busy", "cannot use the GPU"),
        ("2.13.0+cu130", "a100_mig", "needs a newer driver than 550.54.15: update the NVIDIA driver, or install torch for CUDA 12"),
        ("2.13.0+cu130", "busy", None),
        ("2.13.0+cpu", "cpu_container", None),
        (None, "busy", None),
    ],
)
def test_torch_must_match_the_driver(monkeypatch: pytest.MonkeyPatch, torch: str | None, fixture: str, words: str | None) -> None:
    with_packages(monkeypatch, [Package(name="torch", installed=torch, tested="2.13.0")])
    result = run(monkeypatch, fixture)
    assert result.exit_code == (words is not None)
    assert words is None or words in result.stdout


def test_the_old_pynvml_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with_packages(monkeypatch, [Package(name="pynvml", installed="11.5.0", tested=None)])
    result = run(monkeypatch, "busy")
    assert result.exit_code == 0 and "warning: the package pynvml is out of date" in result.stdout


def test_how_versions_are_shown() -> None:
    assert Package(name="trl", installed="1.16.0", tested="1.16.0").shown == "trl 1.16.0"
    assert Package(name="torch", installed="2.13.0+cu130", tested="2.13.0").shown == "torch 2.13.0+cu130"
    assert Package(name="trl", installed="1.15.0", tested="1.16.0").shown == "trl 1.15.0 (tested: 1.16.0)"
    assert Package(name="vllm", installed=None, tested=None).shown == "vllm absent"


def test_damaged_metadata_is_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise KeyError("Version")
        if name == "pynvml":
            return "11.5.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {package.name: package.installed for package in installed_packages()}
    assert found["torch"] == "unknown" and found["trl"] is None and found["pynvml"] == "11.5.0"


def test_every_tested_package_is_shown() -> None:
    assert {name for names in EXTRAS.values() for name in names} >= set(TESTED)
