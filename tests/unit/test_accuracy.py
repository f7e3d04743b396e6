"""The arithmetic of comparing, the report and the command. Rows here are made up, but for the last test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from made_up_runs import FMS, accuracy, estimate, known, run
from typer.testing import CliRunner

from llamamath.cli.accuracy import accuracy as accuracy_command
from llamamath.errors import UsageError
from llamamath.planner.accuracy.compare import CONTRADICTION, compare, summarise
from llamamath.planner.accuracy.document import to_json
from llamamath.planner.accuracy.jobs import GROUPS
from llamamath.planner.accuracy.report import GENERATED, to_markdown, without_date
from llamamath.planner.accuracy.run import accuracy_of, card_capacity, default_runs
from llamamath.planner.architecture import Architecture
from llamamath.planner.estimate import Estimate
from llamamath.planner.job import Job
from llamamath.planner.memory import Conditions
from llamamath.units import GIB

ROOT = Path(__file__).resolve().parents[2]


# comparing


def test_summary_arithmetic() -> None:
    rows = [run(id="a", measured_bytes=10 * GIB), run(id="b", measured_bytes=16 * GIB), run(id="c", measured_bytes=12 * GIB)]
    found = accuracy(rows, estimate(12 * GIB, high=13 * GIB))
    summary = found.groups["A"]
    assert summary.rows == 3 and summary.worst_id == "b" and summary.worst_error == pytest.approx(-0.25)
    assert summary.mean_error == pytest.approx((0.2 + 0.25 + 0) / 3) and summary.median_error == pytest.approx(0.2)
    assert summary.mean_signed_error == pytest.approx((0.2 - 0.25) / 3)
    assert summary.share_under == pytest.approx(1 / 3) and summary.share_above_high == pytest.approx(1 / 3)
    assert [miss.mapped.run.id for miss in found.misses] == ["b", "a"]
    assert summarise(()) is None and list(found.groups) == ["A"]


def test_the_figure_decides_what_is_compared() -> None:
    prediction = estimate(1 * GIB, reserved=2 * GIB, device=3 * GIB, high=4 * GIB)
    sizes = {"torch.cuda.max_memory_allocated": 1, "torch.cuda.max_memory_reserved": 2, "nvidia-smi": 3}
    for measure, size in sizes.items():
        assert accuracy([run(measure=measure)], prediction).comparisons[0].predicted_bytes == size * GIB


def test_an_allocated_figure_is_held_against_its_own_bound_and_nvidia_smi_against_the_device() -> None:
    smi = {"nvidia_smi_peak_MiB": 14 * 1024}
    exact = accuracy([run(measured_bytes=10 * GIB, extra=smi)], estimate(10 * GIB, high=13 * GIB)).comparisons[0]
    assert not exact.above_high and exact.device_above_high and exact.error == 0
    low = accuracy([run(measured_bytes=round(10.2 * GIB), extra={})], estimate(10 * GIB, high=13 * GIB)).comparisons[0]
    assert low.above_high and low.device_above_high is None  # the formula is given 1 %
    reserved = accuracy([run(measured_bytes=12 * GIB, measure="max_memory_reserved")], estimate(10 * GIB, high=13 * GIB)).comparisons[0]
    assert not reserved.above_high


@pytest.mark.parametrize(
    ("device", "high", "verdict", "right_if_oom", "right_if_ran"),
    [(50, 60, "fits", False, True), (70, 90, "tight", True, True), (85, 95, "does_not_fit", True, False)],
)
def test_verdicts(device: int, high: int, verdict: str, right_if_oom: bool, right_if_ran: bool) -> None:
    rows = [run(id="oom", oom=True, measured_bytes=None), run(id="ran", measured_bytes=1 * GIB)]
    found = accuracy(rows, estimate(device * GIB, high=high * GIB))
    assert [(v.happened, v.predicted, v.right) for v in found.verdicts] == [("oom", verdict, right_if_oom), ("ran", verdict, right_if_ran)]
    assert [c.mapped.run.id for c in found.comparisons] == ["ran"]


def test_a_figure_that_its_own_configuration_rules_out_is_left_out_and_listed() -> None:
    full = {"method": "full", "quant": "none", "lora_rank": None, "lora_targets": None}
    found = accuracy([run(**full, measured_bytes=7 * GIB)], estimate(20 * GIB, parameters=GIB))  # 8 bytes a parameter: 8 GiB at least
    assert not found.comparisons and found.excluded[0].reason == CONTRADICTION
    assert accuracy([run(**full, measured_bytes=9 * GIB)], estimate(20 * GIB, parameters=GIB)).comparisons
    paged = run(**full, measured_bytes=7 * GIB, optimizer="paged_adamw_8bit")
    assert accuracy([paged], estimate(20 * GIB, parameters=GIB)).comparisons


def test_every_run_is_accounted_for() -> None:
    def predict(job: Job, architecture: Architecture, conditions: Conditions) -> Estimate:
        if job.per_device_train_batch_size == 3:
            raise UsageError("no")
        return estimate(GIB)

    rows = [run(id="a"), run(id="b", gpu_count=2), run(id="c", micro_batch=3), run(id="d", oom=True, measured_bytes=None, gpu=None)]
    found = compare(rows, predict, resolve=known, capacity=card_capacity)
    assert found.total == 4 and len(found.comparisons) == 1
    assert {row.run.id: row.reason for row in found.excluded} == {
        "b": "more than one GPU", "c": "the planner refuses the job", "d": "capacity of the GPU not known",
    }  # fmt: skip


def test_reasons_only_explain_their_direction() -> None:
    row = run(seq_len_kind="max (truncation)", flags={"config": "none"}, measure="max_memory_reserved")
    assert "length-bound" in accuracy([row], estimate(20 * GIB)).comparisons[0].reasons
    assert "length-bound" not in accuracy([row], estimate(5 * GIB)).comparisons[0].reasons


# reporting


def test_report_prints_every_row_and_changes_only_its_date() -> None:
    rows = [run(id=f"row-{number}", measured_bytes=(8 + number) * GIB) for number in range(5)] + [run(id="gone", gpu_count=4)]
    found = accuracy(rows, estimate(10 * GIB, high=14 * GIB))
    text = to_markdown(found, date="2026-01-01", source="runs.jsonl")
    assert all(f"| row-{number} |" in text for number in range(5)) and "more than one GPU" in text
    assert "## Verdicts" in text and "## Misses over 15 %" in text and f"### A: {GROUPS['A']}" in text
    later = to_markdown(found, date="2026-02-02", source="runs.jsonl")
    assert text != later and without_date(text) == without_date(later) and GENERATED in text
    document = json.loads(json.dumps(to_json(found)))
    assert document["schema_version"] == 1 and len(document["rows"]) == 5 and document["excluded"][0]["id"] == "gone"


def test_empty_file_makes_a_report() -> None:
    found = compare([], lambda job, architecture, conditions: estimate(1), resolve=known)
    assert "# Predicted against measured" in to_markdown(found, date="2026-01-01", source="runs.jsonl")


# the command


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[typer.Typer, Path]:
    """The command alone, predicting 10 GiB for everything, and a file of two runs, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("llamamath.planner.accuracy.run._memory_model", lambda: lambda job, architecture, conditions: estimate(10 * GIB))
    monkeypatch.setattr("llamamath.planner.accuracy.run._known_models", lambda: known)
    app = typer.Typer()
    app.command()(accuracy_command)
    runs = tmp_path / "runs.jsonl"
    runs.write_text("\n".join([json.dumps(FMS), "not JSON", json.dumps(FMS | {"id": "two", "gpu_count": 2})]), encoding="utf-8")
    return app, runs


def test_command_prints_a_summary_or_one_json_document(cli: tuple[typer.Typer, Path]) -> None:
    app, runs = cli
    done = CliRunner().invoke(app, [str(runs)])
    assert (
        done.exit_code == 0
        and "1 of 2 runs compared" in done.stdout.replace("\n", " ")
        and "1 lines unreadable" in done.stdout.replace("\n", " ")
    )
    done = CliRunner().invoke(app, [str(runs), "--json"])
    document = json.loads(done.stdout)
    assert (document["compared"], document["total"], document["malformed"]) == (1, 2, 1)


def test_command_writes_the_report_and_checks_it(cli: tuple[typer.Typer, Path]) -> None:
    app, runs = cli
    Path("docs").mkdir()
    assert CliRunner().invoke(app, [str(runs), "--check"]).exit_code == 1
    done = CliRunner().invoke(app, [str(runs), "-o", "docs/accuracy.md"])
    assert done.exit_code == 0 and "made-up" in Path("docs/accuracy.md").read_text(encoding="utf-8")
    assert CliRunner().invoke(app, [str(runs), "--check"]).exit_code == 0
    Path("docs/accuracy.md").write_text("# old\n", encoding="utf-8")
    assert CliRunner().invoke(app, [str(runs), "--check"]).exit_code == 1


def test_command_without_the_data(cli: tuple[typer.Typer, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app, _ = cli
    monkeypatch.setenv("LLAMAMATH_SHARED_DATA", str(tmp_path / "nowhere"))
    done = CliRunner().invoke(app, ["--check"])
    assert done.exit_code == 0 and "not checked" in done.stderr
    assert isinstance(CliRunner().invoke(app, []).exception, UsageError)
    assert isinstance(CliRunner().invoke(app, ["--check", str(tmp_path / "missing.jsonl")]).exception, UsageError)


def test_planner_modules_do_not_import_torch() -> None:
    code = "import sys, llamamath.planner.accuracy.run, llamamath.planner.accuracy.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


# the real data, where it is


def shared_runs() -> Path:
    folder = os.environ.get("LLAMAMATH_SHARED_DATA")
    return Path(folder, "memory", "published_runs.jsonl") if folder else ROOT.parent / "shared" / "data" / "memory" / "published_runs.jsonl"


@pytest.mark.skipif(
    not shared_runs().is_file(), reason="no shared data beside the repository; set LLAMAMATH_SHARED_DATA to its folder to run this test"
)
def test_the_published_runs_give_at_least_a_hundred_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAMATH_SHARED_DATA", str(shared_runs().parents[1]))
    found = accuracy_of(default_runs(), predict=lambda job, architecture, conditions: estimate(10 * GIB, parameters=1))
    assert found.malformed == 0 and found.total >= 800
    assert len(found.comparisons) >= 100 and {"A", "B", "C", "D", "E"} <= set(found.groups)
    assert all(comparison.mapped.run.gpu_count == 1 for comparison in found.comparisons)
    ooms = [verdict for verdict in found.verdicts if verdict.happened == "oom"]
    assert len(ooms) >= 20
    accounted = len(found.comparisons) + len(found.excluded) + sum(v.mapped.measured_bytes is None for v in found.verdicts)
    assert accounted == found.total
