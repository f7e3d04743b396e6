"""The formula against the trace over random jobs: `python benchmarks/formula_against_trace.py [COUNT] [--first N] [--whole] [-o FILE]`.

Prints a line for each job and a summary: mean and worst error of peak allocated bytes, and how often both name the same peak phase.
Models are cut to 4 or 6 layers of their real widths unless --whole. Loading is left out on both sides: it is no part of the step.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_jobs import random_job
from llamamath.planner.job_files.job_text import job_to_dict
from llamamath.planner.memory import estimate
from llamamath.planner.trace.batch import trace_many
from llamamath.planner.trace.request import request_for


def compare(numbers: list[int], layers: tuple[int, ...]) -> list[dict[str, object]]:
    """One row for each job."""
    jobs = [random_job(number, layers=layers) for number in numbers]
    rows: list[dict[str, object]] = []
    results = trace_many(request_for(job, architecture) for job, architecture in jobs)
    for number, (job, architecture), result in zip(numbers, jobs, results, strict=True):
        row: dict[str, object] = {"number": number, "family": architecture.family, "layers": architecture.num_hidden_layers}
        row |= {"job": job_to_dict(job)}
        if isinstance(result, str):
            row["error"] = result
        else:
            formula = estimate(job, architecture)
            peak = max((instant for instant in result.instants if instant.phase != "load"), key=lambda instant: instant.allocated_bytes)
            row |= {"trace_bytes": peak.allocated_bytes + result.unseen_allocated_bytes, "trace_phase": peak.phase}
            by_formula = max((phase for phase in formula.phases if phase.name != "load"), key=lambda phase: phase.total_bytes)
            row |= {"formula_bytes": by_formula.total_bytes, "formula_phase": by_formula.name}
            row |= {"seconds": result.seconds}
            row["phases"] = {
                instant.phase: [instant.allocated_bytes + result.unseen_allocated_bytes, found.total_bytes]
                for instant in result.instants
                if (found := formula.phase(instant.phase)) is not None
            }
        rows.append(row)
        _print(row)
    return rows


def error_of(row: dict[str, object]) -> float:
    """formula / trace - 1"""
    formula, traced = row["formula_bytes"], row["trace_bytes"]
    assert isinstance(formula, int) and isinstance(traced, int)
    return formula / traced - 1


def _print(row: dict[str, object]) -> None:
    if "error" in row:
        print(row["number"], row["family"], "ERROR", row["error"], flush=True)
        return
    job = row["job"]
    assert isinstance(job, dict)
    shown = {key: job[key] for key in ("method", "stack", "quantization", "attn_implementation", "optim") if job[key]}
    names = ("padding", "gradient_checkpointing", "use_reentrant", "beta", "num_images", "gradient_accumulation_steps")
    flags = " ".join(f"{name}={job[name]}" for name in names if job[name] not in (0, False, 0.0))
    lora = job["lora"]
    adapters = "full" if lora is None else f"r{lora['r']} drop{lora['lora_dropout']} {lora['dtype']} {lora['target_modules']}"
    print(
        f"{row['number']:4} {row['family']:8} {error_of(row):+8.3%} {row['trace_phase']}/{row['formula_phase']} "
        f"{' '.join(map(str, shown.values()))} {adapters} {flags}",
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("count", type=int, nargs="?", default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("-o", type=Path)
    options = parser.parse_args()
    rows = compare(list(range(options.first, options.first + options.count)), () if options.whole else (4, 6))
    good = [row for row in rows if "error" not in row]
    errors = [error_of(row) for row in good]
    same = sum(row["trace_phase"] == row["formula_phase"] for row in good)
    print(
        f"{len(good)} of {len(rows)} jobs: mean error {sum(map(abs, errors)) / len(errors):.3%}, worst {max(errors, key=abs):+.3%}, ",
        end="",
    )
    print(f"same peak phase {same / len(good):.1%}, more than 1 % below the trace: {sum(error < -0.01 for error in errors)}")
    if options.o:
        options.o.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
