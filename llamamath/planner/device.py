"""A Device: the memory, rates and price a job is judged against, whether probed, looked up by name or given as `12GiB`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One place to run. Unknown quantities are None, never a plausible guess.

    `limit_bytes` is what a process may use in all, context included: free memory when probed, usable capacity when looked up, or
    the budget if that is smaller. `limit_basis` says which. Rates are dense peaks.
    """

    name: str
    kind: str
    """`cuda` or `cpu`."""
    total_bytes: int
    limit_bytes: int
    limit_basis: str
    context_bytes: int | None = None
    """CUDA context and driver, if measured on this machine; else None and the model's own interval applies."""
    compute_capability: tuple[int, int] | None = None
    memory_bandwidth_bytes_per_second: float | None = None
    bf16_flops_per_second: float | None = None
    """Dense bf16 (fp16 before compute capability 8.0) tensor rate with fp32 accumulation."""
    host_to_device_bytes_per_second: float | None = None
    price_usd_per_hour_low: float | None = None
    price_usd_per_hour_high: float | None = None
    host_memory_bytes: int | None = None
    """RAM this process may use (cgroup limit included), if known."""
    disk_free_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def supports_bf16(self) -> bool:
        """bf16 tensor cores need compute capability 8.0; CPUs and unnamed cards are taken to support it."""
        return self.compute_capability is None or self.compute_capability >= (8, 0)
