"""GRPO's rollout through transformers' own `generate`: the prefill, then the last tokens from a cache of full length. Worker only.

Between them nothing new happens: every decode step runs the same code on a cache one token longer, so the growth of the cache in between
is synthesised from the two ends (growth.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from llamamath.planner.trace.functions import GpuFunctions
from llamamath.planner.trace.inputs import image_inputs, token_ids
from llamamath.planner.trace.model import Built, base_of
from llamamath.planner.trace.request import TraceRequest
from llamamath.planner.trace.tracker import StorageTracker

PREFILL_TOKENS, DECODE_TOKENS = 3, 2
"""Tokens really generated after the prompt, and at the end of the completion."""


class Generation:
    """The rollouts of one job."""

    def __init__(self, request: TraceRequest, built: Built, tracker: StorageTracker, functions: GpuFunctions) -> None:
        self.request = request
        self.job = request.job
        self.built = built
        self.tracker = tracker
        self.functions = functions
        self.cache_dtype: torch.dtype | None = None

    def run(self, rows: int, phase: str = "generate") -> None:
        """`rows` completions of full length."""
        from trl.models.utils import disable_gradient_checkpointing

        job, model = self.job, self.built.model
        base = base_of(model)
        use_cache = base.config.use_cache
        checkpointing = disable_gradient_checkpointing(model, {"use_reentrant": job.use_reentrant})
        try:
            with self._watched_cache(), torch.no_grad(), checkpointing if job.gradient_checkpointing else contextlib.nullcontext():
                self.tracker.mark(phase, "prefill")
                self._prefill(rows)
                self.tracker.mark("fill")
                self._decode(rows, phase)
                self.tracker.mark("between")
        finally:
            base.config.use_cache = use_cache
            self.functions.truth = True

    def _prefill(self, rows: int) -> None:
        prompt = self.job.max_prompt_length or 0
        ids = token_ids(rows, prompt)
        images = image_inputs(self.built.config, self.job, rows, prompt)
        mask = torch.ones_like(ids)
        self.built.model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=_config(PREFILL_TOKENS),
            logits_processor=self._stop_after(PREFILL_TOKENS),
            **images,
        )

    def _decode(self, rows: int, phase: str) -> None:
        job, config = self.job, self.built.config
        length = job.sequence_length - DECODE_TOKENS
        cache = self._full_cache(rows, length)
        ids = token_ids(rows, length + 1)
        mask = torch.ones_like(ids)
        images = image_inputs(config, job, rows, length + 1)
        images = {name: value for name, value in images.items() if name == "cross_attention_mask"}
        self.tracker.mark(phase, "decoding the last tokens")
        self.built.model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=_config(DECODE_TOKENS),
            logits_processor=self._stop_after(DECODE_TOKENS),
            **images,
        )

    def _full_cache(self, rows: int, length: int) -> Any:
        """A DynamicCache (sliding layers included) as it is after `length` tokens."""
        from transformers import DynamicCache

        text = self.built.config.get_text_config()
        cache = DynamicCache(config=text)
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        crossing = set(getattr(text, "cross_attention_layers", None) or ())
        dtype = self.cache_dtype or torch.bfloat16
        for layer in range(text.num_hidden_layers):
            tokens = length
            if layer in crossing:
                if not self.job.num_images:
                    continue
                vision = self.built.config.vision_config
                tokens = self.job.num_images * vision.max_num_tiles * ((vision.image_size // vision.patch_size) ** 2 + 1)
            keys = torch.empty(rows, text.num_key_value_heads, tokens, head_dim, dtype=dtype)
            cache.update(keys, torch.empty_like(keys), layer)
        return cache

    def _stop_after(self, tokens: int) -> list[Any]:
        """A logits processor that makes the loop's "all finished?" answer yes after so many tokens."""
        seen = 0
        self.functions.truth = False

        def count(ids: Any, scores: Any) -> Any:
            nonlocal seen
            seen += 1
            self.functions.truth = seen >= tokens
            return scores

        return [count]

    @contextlib.contextmanager
    def _watched_cache(self) -> Iterator[None]:
        """While it lasts, what the cache holds is labelled so, and its dtype is remembered."""
        from transformers import cache_utils

        layers: list[Any] = [cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer]
        originals = [layer.update for layer in layers]

        def watching(original: Callable[..., Any]) -> Callable[..., Any]:
            def update(layer: Any, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
                self.cache_dtype = self.cache_dtype or keys.dtype
                out = original(layer, keys, values, *args, **kwargs)
                for kept in (layer.keys, layer.values):
                    self.tracker.relabel(kept, "kv_cache")
                return out

            return update

        for layer, original in zip(layers, originals, strict=True):
            layer.update = watching(original)
        try:
            yield
        finally:
            for layer, original in zip(layers, originals, strict=True):
                layer.update = original


def _config(tokens: int) -> Any:
    """TRL 1.16's GenerationConfig with GRPOConfig's defaults (grpo_trainer.py)."""
    from transformers import GenerationConfig

    return GenerationConfig(
        max_new_tokens=tokens,
        do_sample=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=[1],
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=None,
        repetition_penalty=1.0,
        use_cache=True,
        disable_compile=True,
    )
