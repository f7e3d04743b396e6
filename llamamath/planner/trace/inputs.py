"""Batches: token ids, masks, labels and image inputs of the job's shapes. Worker process only.

Under fake tensors values do not exist; the comparison with a CPU step calls the same functions for real ones.
"""

from __future__ import annotations

from typing import Any

import torch

from llamamath.planner.job import Job

WORDS = 1000
"""Token ids are below this: any vocabulary has so many."""


def token_ids(rows: int, length: int) -> torch.Tensor:
    """int64 ids, as collators make them."""
    return torch.randint(0, WORDS, (rows, length))


def image_inputs(config: Any, job: Job, rows: int, length: int) -> dict[str, torch.Tensor]:
    """What transformers' MllamaProcessor adds for `num_images` images per row, every image using all tiles."""
    if not job.num_images or getattr(config, "vision_config", None) is None:
        return {}
    vision, images = config.vision_config, job.num_images
    tiles, size = vision.max_num_tiles, vision.image_size
    return {
        "pixel_values": torch.empty(rows, images, tiles, vision.num_channels, size, size, dtype=torch.float32),
        "aspect_ratio_ids": torch.ones(rows, images, dtype=torch.int64),
        "aspect_ratio_mask": torch.ones(rows, images, tiles, dtype=torch.int64),
        "cross_attention_mask": torch.ones(rows, length, images, tiles, dtype=torch.int64),
    }


def carrying(model: Any, images: dict[str, torch.Tensor], rows: int) -> Any:
    """The model with the image inputs of the first `rows` rows in every forward, as a GRPOTrainer subclass must do for Mllama.

    TRL 1.16 carries other models' image inputs, not Mllama's.
    """
    if not images:
        return model
    carried = {name: value[:rows] for name, value in images.items()}
    return lambda **kwargs: model(**kwargs, **carried)


def grpo_batch(rows: int, prompt: int, completion: int) -> dict[str, Any]:
    """What GRPOTrainer's `_generate_and_score_completions` returns for `rows` completions."""
    return {
        "prompt_ids": token_ids(rows, prompt),
        "prompt_mask": torch.ones(rows, prompt, dtype=torch.int64),
        "completion_ids": token_ids(rows, completion),
        "completion_mask": torch.ones(rows, completion, dtype=torch.int64),
        "advantages": torch.zeros(rows),
        "num_items_in_batch": torch.tensor(float(rows * completion)),
    }
