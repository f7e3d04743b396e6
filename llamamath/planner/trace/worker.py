"""The worker process: `python -m llamamath.planner.trace.worker RESULT_FILE`, a request as JSON on stdin, progress lines on stdout.

Everything that imports torch happens here, and ends with the process. Exit 0: the result is in RESULT_FILE. Exit 1: it holds
{"error": ..., "detail": ...}.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TextIO

QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
"""Environment of the worker: one thread (fake kernels do nothing), no network, no chatter."""


def quiet() -> TextIO:
    """Silence libraries and the network; returns the real stdout, which they no longer reach."""
    import logging

    os.environ.update(QUIET)
    warnings.filterwarnings("ignore")
    out = sys.stdout
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - libraries print; it lives as long as the process
    import torch

    torch.set_num_threads(1)
    for name in ("bitsandbytes", "torch._subclasses.fake_tensor"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return out


def main(arguments: list[str]) -> int:
    """Trace the request on stdin into the file named by the only argument."""
    path = arguments[0]
    print("import", flush=True)
    progress = quiet()
    try:
        text = _trace(sys.stdin.read(), lambda phase: print(phase, file=progress, flush=True))
        code = 0
    except BaseException as error:  # the parent gets everything, whatever it was
        text = json.dumps({"error": f"{type(error).__name__}: {error}"[:2000], "detail": traceback.format_exc()[-4000:]})
        code = 1
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return code


def _trace(request_text: str, progress: Callable[[str], None]) -> str:
    from llamamath.planner.trace.request import TraceRequest
    from llamamath.planner.trace.result import result_to_json
    from llamamath.planner.trace.running import run
    from llamamath.planner.trace.versions import check_versions, installed_versions

    return result_to_json(run(TraceRequest.from_json(request_text), check_versions(installed_versions()), progress))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # torch's and the libraries' exit handlers would run on patched modules
