"""One training step: loss, backward, optimizer, and evaluation, through the trainer's own loss code. Worker process only.

Which tensors a trainer's frames still name while the backward runs decides what is alive, so the locals here mirror the trainers'.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from llamamath.planner.trace.inputs import carrying, grpo_batch, image_inputs, token_ids
from llamamath.planner.trace.model import Built
from llamamath.planner.trace.request import TraceRequest
from llamamath.planner.trace.trainers import dpo_trainer, grpo_trainer, sft_trainer, undecorated

MAX_GRAD_NORM = 1.0
Mark = Callable[[str, str], None]
Scored = Callable[[int], None]


class Steps:
    """The steps of one job. `mark` is told the phase; `scored` how many tokens the next loss scores (data-dependent in a real run)."""

    def __init__(self, request: TraceRequest, built: Built, mark: Mark, scored: Scored) -> None:
        self.request = request
        self.job = request.job
        self.built = built
        self.mark = mark
        self.scored = scored
        self.after_backward: Callable[[], None] = lambda: None
        self.earlier: Callable[[], None] | None = None
        """Stands for the micro-batches before the last one: leaves the gradients they leave. None: one is really run."""

    @property
    def rows(self) -> int:
        """Sequences of a micro-batch: DPO's pairs are two each."""
        return self.job.per_device_train_batch_size * (2 if self.job.method == "dpo" else 1)

    def train(self, optimizer: Any, *, generate: Callable[[], None] | None = None) -> None:
        """One optimizer step: the last micro-batch, with gradients of earlier ones alive where there are any."""
        batch: dict[str, Any] | None = None
        images: dict[str, Any] = {}
        if self.job.method == "grpo":
            if generate is not None:
                generate()
            batch, images = self._rollout_batch()
        if self.job.gradient_accumulation_steps > 1:
            if self.earlier is None:
                self._micro_batch(batch, images)
            else:
                self.earlier()
        self._micro_batch(batch, images)
        self.after_backward()
        self.mark("optimizer", "clipping")
        torch.nn.utils.clip_grad_norm_(self.built.trainable, MAX_GRAD_NORM)
        self.mark("optimizer", "step")
        optimizer.step()
        optimizer.zero_grad()
        self.mark("between", "")

    # -- one micro-batch

    def _micro_batch(self, batch: dict[str, Any] | None, images: dict[str, Any]) -> None:
        job = self.job
        if job.method == "grpo":
            assert batch is not None
            rows = job.per_device_train_batch_size
            self.scored(self.request.scored_tokens or rows * (job.max_completion_length or 0))
            inputs = {name: value[:rows] if torch.is_tensor(value) and value.dim() else value for name, value in batch.items()}
            self.mark("forward", "")
            loss = self._grpo_loss(inputs, images, rows)
        else:
            self.mark("forward", "")
            loss, inputs = self._loss(self.rows)
        self.mark("backward", "")
        if job.gradient_accumulation_steps > 1 and job.method != "sft":
            loss = loss / job.gradient_accumulation_steps
        loss.backward()
        del loss, inputs

    def _loss(self, rows: int, *, train: bool = True) -> tuple[Any, dict[str, Any]]:
        """(SFT's or DPO's loss, the inputs that the trainer's loop still names)."""
        job, model, length = self.job, self.built.model, self.job.sequence_length
        ids = token_ids(rows, length)
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        images = image_inputs(self.built.config, job, rows, length)
        if job.method == "dpo":
            from trl import DPOTrainer

            self.scored(self.request.scored_tokens or rows * (length - max(job.max_prompt_length or 0, 1)))
            inputs |= {"completion_mask": torch.ones_like(ids), **images}
            if job.precompute_ref_log_probs:
                inputs |= {"ref_chosen_logps": torch.zeros(rows // 2), "ref_rejected_logps": torch.zeros(rows // 2)}
            trainer = dpo_trainer(self.request, model, self.built.reference)
            return undecorated(DPOTrainer._compute_loss)(trainer, model, inputs, False), inputs
        inputs |= {"labels": token_ids(rows, length), **images}
        count = {"num_items_in_batch": torch.tensor(rows * length)} if train else {}
        if job.stack.startswith("trl") and job.loss != "full":
            from trl import SFTTrainer

            self.scored(self.request.scored_tokens or rows * (length - 1))
            return undecorated(SFTTrainer.compute_loss)(sft_trainer(self.request, model), model, inputs, **count), inputs
        return _plain_loss(model, inputs, count if job.stack in ("transformers-5", "trl-1.16") else {}, job.stack), inputs

    # -- GRPO

    def _rollout_batch(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Completions with what was scored before the update: old and reference log-probabilities."""
        job = self.job
        prompt, completion = job.max_prompt_length or 0, job.max_completion_length or 0
        rows = job.generation_batch_size
        self.scored(self.request.scored_tokens or job.per_device_train_batch_size * completion)
        batch = grpo_batch(rows, prompt, completion)
        images = image_inputs(self.built.config, job, rows, prompt + completion)
        steps = job.steps_per_generation or job.gradient_accumulation_steps
        old = job.rollout.engine == "vllm" or job.gradient_accumulation_steps % (steps * job.num_iterations) != 0
        if old or job.beta:
            self._score(batch, images, old=old)
        return batch, images

    def _score(self, batch: dict[str, Any], images: dict[str, Any], *, old: bool, rows: int | None = None) -> None:
        from trl import GRPOTrainer
        from trl.models.utils import disable_gradient_checkpointing

        job, model, reference = self.job, self.built.model, self.built.reference
        rows = rows or job.per_device_train_batch_size
        self.mark("score", "")
        trainer = grpo_trainer(self.request, model)
        log_probs = undecorated(GRPOTrainer._get_per_token_logps_and_entropies)
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        completion = batch["completion_ids"].shape[1]

        def score(scorer: Any) -> Any:
            return log_probs(trainer, carrying(scorer, images, rows), ids, mask, completion, batch_size=rows)[0]

        with torch.no_grad(), disable_gradient_checkpointing(model, {"use_reentrant": job.use_reentrant}):
            if old:
                batch["old_per_token_logps"] = score(model)
            if job.beta and reference is not None:
                batch["ref_per_token_logps"] = score(reference)
            elif job.beta:
                with model.disable_adapter() if job.lora else contextlib.nullcontext():
                    batch["ref_per_token_logps"] = score(model)

    def _grpo_loss(self, inputs: dict[str, Any], images: dict[str, Any], rows: int) -> Any:
        from trl import GRPOTrainer

        model = self.built.model
        return undecorated(GRPOTrainer._compute_loss)(grpo_trainer(self.request, model), carrying(model, images, rows), inputs)

    # -- evaluation

    def evaluate(self, generate: Callable[[], None] | None) -> None:
        """Evaluation during training: no gradients; GRPO generates, then takes the loss of what it generated."""
        job, model = self.job, self.built.model
        rows = job.per_device_eval_batch_size or 1
        model.eval()
        with torch.no_grad():
            if job.method == "grpo":
                if generate is not None:
                    generate()
                batch = grpo_batch(rows, job.max_prompt_length or 0, job.max_completion_length or 0)
                images = image_inputs(self.built.config, job, rows, job.sequence_length)
                self.scored(rows * (job.max_completion_length or 0))
                self.mark("evaluate", "loss")
                if job.beta:
                    self._score(batch, images, old=False, rows=rows)
                    self.mark("evaluate", "loss")
                self._grpo_loss(batch, images, rows)
            else:
                self.mark("evaluate", "loss")
                self._loss(rows * (2 if job.method == "dpo" else 1), train=False)
        model.train()
        self.mark("between", "")


def _plain_loss(model: Any, inputs: dict[str, Any], count: dict[str, Any], stack: str) -> Any:
    """transformers.Trainer.compute_loss: the outputs die when it returns."""
    extra = {"use_cache": False} if stack.startswith("trl") else {}
    outputs = model(**inputs, **extra, **count)
    return outputs["loss"]
