"""Many traces with one start of the libraries: `trace_many` for the parent, `python -m llamamath.planner.trace.batch` for the worker.

The worker imports everything once and forks for each request, so that each trace patches a torch of its own. POSIX only; for benchmarks,
tests and the accuracy report.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterable, Iterator

from llamamath.errors import UnavailableError
from llamamath.planner.trace.request import TraceRequest
from llamamath.planner.trace.result import TraceResult, result_from_json


def trace_many(requests: Iterable[TraceRequest]) -> Iterator[TraceResult | str]:
    """One result for each request, in order; a string says why there is none."""
    if not hasattr(os, "fork"):
        raise UnavailableError("tracing many jobs at once needs a POSIX system", "trace them one by one")
    from llamamath.planner.trace.client import _environment

    command = [sys.executable, "-m", "llamamath.planner.trace.batch"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8", env=_environment()
    ) as process:
        assert process.stdin and process.stdout
        for request in requests:
            process.stdin.write(request.to_json() + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise UnavailableError("the trace's worker ended early", "try one job with llamamath trace")
            values = json.loads(line)
            yield values["error"] if "error" in values else result_from_json(line)
        process.stdin.close()


def _serve() -> None:
    """Answer requests, one line each, until stdin ends."""
    from llamamath.planner.trace.worker import quiet

    out = quiet()
    import accelerate  # noqa: F401
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch._dynamo  # noqa: F401
    import transformers.masking_utils  # noqa: F401
    from trl import DPOTrainer, GRPOTrainer, SFTTrainer  # noqa: F401

    from llamamath.planner.trace.result import result_to_json
    from llamamath.planner.trace.running import run
    from llamamath.planner.trace.versions import check_versions, installed_versions

    versions = check_versions(installed_versions())
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            try:
                text = result_to_json(run(TraceRequest.from_json(line), versions))
            except BaseException as error:
                text = json.dumps({"error": f"{type(error).__name__}: {error}"[:1000], "detail": traceback.format_exc()[-3000:]})
            with os.fdopen(write, "w", encoding="utf-8") as pipe:
                pipe.write(text)
            os._exit(0)
        os.close(write)
        with os.fdopen(read, encoding="utf-8") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        print(answer or json.dumps({"error": "the trace was killed"}), file=out, flush=True)


if __name__ == "__main__":
    _serve()
