"""Take one patch away at a time and trace: `python canary_deaths.py` prints {"patch": "what the trace said"} line by line.

A process of its own that imports once and forks for each patch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1")

from cpu_comparison import MODELS

from llamamath.planner.job import Job
from llamamath.planner.trace.request import request_for


def _nothing(*args: object, **kwargs: object) -> None:
    """In place of a patch."""


def removals() -> dict[str, Callable[[], None]]:
    """Name of a patch -> what takes it away."""
    from llamamath.planner.trace import accumulation, functions, patches, running
    from llamamath.planner.trace.attention import Attention
    from llamamath.planner.trace.autocast import Autocast

    def without(owner: object, name: str, value: object = _nothing) -> Callable[[], None]:
        return lambda: setattr(owner, name, value)

    return {
        "nothing": lambda: None,
        "answer_cpu_to_autograd": without(patches, "answer_cpu_to_autograd"),
        "give_cpu_backend_keys": without(patches, "give_cpu_backend_keys"),
        "replace_parameters_in_apply": without(patches, "replace_parameters_in_apply"),
        "allow_cuda_autocast": without(patches, "allow_cuda_autocast"),
        "install_transformers": without(running.patches, "install_transformers"),
        "install_trl": without(running.patches, "install_trl"),
        "emulations": without(functions, "emulations", lambda tracker, request: {}),
        "attention": without(Attention, "choose", lambda self, query, mask, grouped: "math"),
        "autocast": without(Autocast, "arguments", lambda self, func, args, kwargs: (args, kwargs)),
        "dropout": without(functions, "_dropout", functions.F.dropout),
        "accumulation frames": without(accumulation, "_MODE_FRAMES", frozenset()),
        "accumulation references": without(accumulation, "_HELD_BY_ENGINE", 3),
        "to": without(functions, "_to", lambda func, args, kwargs: func(*args, **kwargs)),
    }


def main() -> None:
    """One fork for each patch."""
    import torch._dynamo  # noqa: F401
    import trl  # noqa: F401

    from llamamath.planner.trace.running import run

    job = Job(model="llama", method="sft", max_length=64)
    request = request_for(job, MODELS["llama"])
    for name, remove in removals().items():
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            remove()
            try:
                text = f"passed {len(run(request, {}).canaries)}"
            except BaseException as error:
                text = f"{type(error).__name__}: {error}"
            with os.fdopen(write, "w") as pipe:
                pipe.write(text[:300])
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            print(json.dumps({name: pipe.read() or "crashed"}), flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    sys.exit(main())
