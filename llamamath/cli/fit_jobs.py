"""`fit --jobs`: a verdict for each line of a file, in order. A bad line gets an error of its own and stops nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamamath.cli.judging import Judged, judge_job
from llamamath.cli.output import people, print_json
from llamamath.errors import LlamamathError, shorten

if TYPE_CHECKING:
    from llamamath.planner.architecture import Architecture
    from llamamath.planner.budget import Budget
    from llamamath.planner.device import Device
    from llamamath.planner.job import Job

ALL_FIT, SOME_DO_NOT_FIT, SOME_ARE_BAD = 0, 1, 2


def fit_jobs(path: str, device: Device, budget: Budget, suggestions: int, *, json_output: bool) -> int:
    """Judge every line of `path` (`-`: standard input).

    Exit code: 2 if any line was bad, else 1 if any job does not fit or is tight, else 0.
    """
    from llamamath.planner.job_files.job_file import read_jobs_jsonl

    resolve = _Models()
    code = ALL_FIT
    for number, job in enumerate(read_jobs_jsonl(path), 1):
        result: Judged | LlamamathError
        try:
            result = job if isinstance(job, LlamamathError) else judge_job(job, resolve(job), device, budget, suggestions=suggestions)
        except LlamamathError as error:
            result = error
        _print_line(number, result, json_output=json_output)
        if isinstance(result, LlamamathError):
            code = SOME_ARE_BAD
        elif not result.fits:
            code = max(code, SOME_DO_NOT_FIT)
    return code


class _Models:
    """Resolves each model once, a failure too: asking the hub for the same missing model a thousand times would take hours."""

    def __init__(self) -> None:
        self.found: dict[str, Architecture | LlamamathError] = {}

    def __call__(self, job: Job) -> Architecture:
        from llamamath.planner.model_files.config_file import resolve_model

        if job.model not in self.found:
            try:
                self.found[job.model] = resolve_model(job.model)
            except LlamamathError as error:
                self.found[job.model] = error
        architecture = self.found[job.model]
        if isinstance(architecture, LlamamathError):
            raise architecture
        return architecture


def _print_line(number: int, result: Judged | LlamamathError, *, json_output: bool) -> None:
    from llamamath.planner.contract import error_document, fit_document

    if not json_output:
        _print_row(number, result)
    elif isinstance(result, LlamamathError):
        print_json(error_document(result, line=number))
    else:
        print_json(fit_document(result.job, result.estimate, result.verdict, result.suggestions))


def _print_row(number: int, result: Judged | LlamamathError) -> None:
    from rich.text import Text

    from llamamath.cli.show_job import title_of
    from llamamath.cli.show_verdict import WORDS
    from llamamath.units import GIB

    console = people()
    if isinstance(result, LlamamathError):
        row = Text.assemble(f"{number:>5}  ", ("ERROR", "bold red"), f"  {result.message}")
    else:
        word, style = WORDS[result.verdict.verdict]
        peak = result.estimate.peak
        sizes = f"{peak.high_bytes / GIB:8.2f} of {result.verdict.limit_bytes / GIB:.2f} GiB  "
        row = Text.assemble(f"{number:>5}  ", (word.ljust(13), style), sizes, shorten(title_of(result.job), 100))
    console.print(row, soft_wrap=True)
