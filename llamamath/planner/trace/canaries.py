"""One check for each patch: that on the installed versions the obstacle is still there and the patch still removes it. Worker only.

They run before every trace (a tenth of a second). A canary that dies stops the trace with its name: a silent change in torch would
otherwise only show as wrong bytes.
"""

# mypy: disable-error-code="no-untyped-call"
# Tensor.backward has no types in torch 2.13.

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from llamamath.planner.trace.accumulation import Accumulation
from llamamath.planner.trace.functions import GpuFunctions
from llamamath.planner.trace.tracker import StorageTracker

ROWS, WIDTH = 64, 128


class DeadCanaryError(AssertionError):
    """A patch no longer does what it is for."""


class Canaries:
    """The checks; all run inside `fake_device`."""

    def __init__(self, tracker: StorageTracker, functions: GpuFunctions) -> None:
        self.tracker = tracker
        self.functions = functions
        self.gpu = not functions.cpu_kernels

    def run(self) -> tuple[str, ...]:
        """The names of all checks that passed. Raises DeadCanaryError naming the first that did not."""
        passed = []
        for name in (name for name in dir(self) if name.startswith("check_")):
            check: Callable[[], bool] = getattr(self, name)
            try:
                alive = check()
            except Exception as error:
                raise DeadCanaryError(f"{name}: {type(error).__name__}: {error}") from error
            if not alive:
                raise DeadCanaryError(f"{name}: a patch of torch or of a library no longer works with the installed version")
            passed.append(name.removeprefix("check_"))
        return tuple(passed)

    # -- what is recorded

    def _recorded(self, work: Callable[[], Any]) -> tuple[list[int], list[str], Any]:
        """(sizes of the tensors that `work` allocated, names of the operations it ran, its result)."""
        before = len(self.tracker.entries)
        counts = dict(self.tracker.operations)
        out = work()
        sizes = [entry for entry in self.tracker.entries[before:] if entry > 0]
        ran = [name for name, count in self.tracker.operations.items() if count > counts.get(name, 0)]
        return sizes, ran, out

    @staticmethod
    def _tensor(*shape: int, grad: bool = False, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*(shape or (ROWS, WIDTH)), dtype=dtype, requires_grad=grad)

    def check_python_sees_cuda_and_cpp_autograd_runs(self) -> bool:
        """patches.answer_cpu_to_autograd"""
        x = self._tensor(grad=True)
        (x * 2).sum().backward()
        return x.device.type == "cuda" and x.is_cuda and x.grad is not None and x.grad.device.type == "cuda"

    def check_backward_formulas_do_not_decompose(self) -> bool:
        """patches.give_cpu_backend_keys"""
        x = self._tensor(grad=True)
        ran = self._recorded(lambda: F.silu(x).sum().backward())[1]
        return "aten::silu_backward" in ran and "aten::sigmoid" not in ran

    def check_freed_storages_are_seen(self) -> bool:
        """tracker.StorageTracker: the method itself"""
        before = len(self.tracker.alive)
        x = self._tensor()
        during = len(self.tracker.alive)
        del x
        return during == before + 1 and len(self.tracker.alive) == before

    def check_device_of_new_tensors_does_not_leak(self) -> bool:
        """tracker: C++ `options()` says cpu. `index_select`'s backward makes zeros from options."""
        x = self._tensor(grad=True)
        sizes = self._recorded(lambda: x.index_select(0, torch.zeros(4, dtype=torch.int64)).sum().backward())[0]
        return ROWS * WIDTH * 4 in sizes

    def check_same_device_to_makes_no_copy(self) -> bool:
        """functions._to"""
        x = self._tensor()
        return x.to("cuda") is x and x.to(torch.float32) is x and x.to(torch.bfloat16).dtype == torch.bfloat16

    def check_cpu_is_cpu_when_asked_for(self) -> bool:
        """functions._wants_cpu"""
        return torch.zeros(3, device="cpu").device.type == "cpu"

    def check_module_conversion_replaces_parameters(self) -> bool:
        """patches.replace_parameters_in_apply"""
        return torch.nn.Linear(8, 8).to(torch.bfloat16).weight.dtype == torch.bfloat16

    def check_autocast_casts_and_forgets(self) -> bool:
        """patches.allow_cuda_autocast, autocast.Autocast"""
        x, weight = self._tensor(), self._tensor(WIDTH, WIDTH, grad=True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            out = F.linear(x, weight)
            sizes = self._recorded(lambda: F.linear(out, weight))[0]
            wide = F.softmax(out, -1).dtype
        cached = WIDTH * WIDTH * 2 not in sizes
        return out.dtype == torch.bfloat16 and wide == torch.float32 and cached and not self.functions.autocast.cache

    def check_modes_survive_in_recomputation(self) -> bool:
        """functions.fake_device run_with_modes: autocast inside a checkpoint's recompute"""
        from torch.utils.checkpoint import checkpoint

        x, weight = self._tensor(grad=True), self._tensor(WIDTH, WIDTH)
        seen: list[torch.dtype] = []

        def layer(y: torch.Tensor) -> torch.Tensor:
            out = F.linear(y, weight)
            seen.append(out.dtype)
            return out.exp()

        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = checkpoint(layer, x, use_reentrant=False).sum()
        loss.backward()
        return seen == [torch.bfloat16, torch.bfloat16]

    def check_attention_takes_the_gpu_kernels(self) -> bool:
        """attention.Attention"""
        if not self.gpu:
            return True
        q = self._tensor(1, 4, ROWS, 32, dtype=torch.bfloat16)
        masked = torch.ones(1, 1, ROWS, ROWS, dtype=torch.bool)
        flash = "aten::_scaled_dot_product_flash_attention" in self._recorded(lambda: F.scaled_dot_product_attention(q, q, q))[1]
        if self.functions.attention.capability < (8, 0):
            flash = True
        efficient = self._recorded(lambda: F.scaled_dot_product_attention(q, q, q, attn_mask=masked))[1]
        return flash and "aten::_scaled_dot_product_efficient_attention" in efficient

    def check_dropout_keeps_one_byte_per_element(self) -> bool:
        """functions._Dropout"""
        x = self._tensor(grad=True)
        sizes = self._recorded(lambda: F.dropout(x, 0.1))[0]
        return not self.gpu or sorted(sizes) == [ROWS * WIDTH, ROWS * WIDTH * 4]

    def check_data_dependent_answers(self) -> bool:
        """functions.GpuFunctions"""
        before, self.functions.scored = self.functions.scored, 7
        picked = self._tensor()[torch.ones(ROWS, dtype=torch.bool)]
        self.functions.scored = before
        return picked.shape == (7, WIDTH) and self._tensor(1).sum().item() == 1.0 and bool(self._tensor(1).sum()) is self.functions.truth

    def check_four_bit_products_show_their_weight(self) -> bool:
        """bitsandbytes_ops.emulations, quantized.linear_4bit"""
        from llamamath.planner.trace.quantized import linear_4bit

        layer = linear_4bit(torch.nn.Linear(WIDTH, 2 * WIDTH, bias=False), torch.bfloat16, torch.bfloat16, nested=True)
        x = self._tensor(2048, WIDTH, dtype=torch.bfloat16)
        sizes = self._recorded(lambda: layer(x))[0]
        return 2 * WIDTH * WIDTH * 2 in sizes

    def check_gradients_accumulate_in_place(self) -> bool:
        """accumulation.Accumulation: a fresh gradient takes the next one in, a view of one does not"""
        accumulate = self.tracker.accumulate
        assert isinstance(accumulate, Accumulation)

        def counted(work: Callable[[], Any]) -> tuple[int, int]:
            start = (accumulate.in_place, accumulate.out_of_place)
            work()
            return accumulate.in_place - start[0], accumulate.out_of_place - start[1]

        x, weight = self._tensor(grad=True), self._tensor(WIDTH, WIDTH)
        h = x * 3
        fresh = counted(lambda: (F.silu(h).sum() + F.silu(h).sum()).backward())
        y = (x * 3).view(4, ROWS // 4, WIDTH)
        views = counted(lambda: (F.linear(y, weight) + F.linear(y, weight)).sum().backward())
        return fresh == (1, 0) and views == (0, 1)

    def check_masks_follow_the_padding(self) -> bool:
        """patches.install_transformers"""
        from transformers import LlamaConfig, masking_utils

        config = LlamaConfig(hidden_size=8, num_attention_heads=1, num_key_value_heads=1, num_hidden_layers=1, vocab_size=8)
        config._attn_implementation = "sdpa"
        ids = torch.ones(2, 16, dtype=torch.int64)
        embeds = self._tensor(2, 16, 8)
        mask = masking_utils.create_causal_mask(config, embeds, attention_mask=ids, past_key_values=None, position_ids=None)
        padded = not masking_utils.fast_all(ids)
        return (mask is not None) == padded

    def check_trl_takes_its_kernels(self) -> bool:
        """patches.install_trl"""
        import trl.kernels.chunked_logprob as kernels

        return bool(kernels._use_triton(torch.device("cuda"))) == self.gpu
