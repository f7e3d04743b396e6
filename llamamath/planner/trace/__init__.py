"""The trace: the exact memory of the real training step, without a GPU. See client.trace and estimating.verify.

parent (no torch)                                     worker (a process of its own, patched torch)
  client.py      starts the worker, caches              worker.py      reads the request, writes the result
  request.py     what is asked                          running.py     the whole run
  result.py      what comes back                        patches.py     private parts of torch, replaced; canaries.py checks each
  stream.py      the events                             functions.py   autocast.py attention.py bitsandbytes_ops.py accumulation.py:
  accounting.py  worst instants by component                           what a GPU run does above and below the dispatcher
  replaying.py   through the allocator                  tracker.py     follows storages; components.py labels them
  estimating.py  to an Estimate                         model.py       quantized.py optimizers.py old_stacks.py: what is trained
  cache.py       versions.py                            steps.py       trainers.py inputs.py generation.py: the phases
"""

from __future__ import annotations

from llamamath.planner.trace.client import trace
from llamamath.planner.trace.estimating import to_estimate, verify
from llamamath.planner.trace.result import TraceResult

__all__ = ["TraceResult", "to_estimate", "trace", "verify"]
