"""Forwards of older transformers, as far as they keep tensors as large as the logits alive. Worker process only.

Replicas: modeling_{llama,mistral,granite}.py and loss/loss_utils.py of transformers 4.48.1 and 4.45.2. Local names matter: a tensor
lives until the last name goes.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F


def forward_4_48(self: Any, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **_: Any) -> dict[str, Any]:
    """The loss function upcasts; the caller still holds the model-dtype logits."""
    hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    logits = self.lm_head(hidden[:, -0:, :])
    if hasattr(self.config, "logits_scaling"):
        logits = logits / self.config.logits_scaling
    loss = _loss_4_48(logits, labels, self.config.vocab_size)
    return {"loss": loss, "logits": logits}


def _loss_4_48(logits: Any, labels: Any, vocab_size: int) -> Any:
    logits = logits.float()
    shift_logits = logits[..., :-1, :].contiguous()
    shift_labels = labels[..., 1:].contiguous()
    shift_logits = shift_logits.view(-1, vocab_size)
    shift_labels = shift_labels.view(-1)
    return F.cross_entropy(shift_logits, shift_labels, ignore_index=-100)


def forward_4_45(self: Any, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **_: Any) -> dict[str, Any]:
    """Logits are upcast at once; the shifted copies are names of the forward until it returns."""
    hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
    if hasattr(self.config, "logits_scaling"):
        logits = self.lm_head(hidden)
        logits = logits / self.config.logits_scaling
        logits = logits.float()
    else:
        logits = self.lm_head(hidden[:, -0:, :]).float()
    logits = logits.float()
    shift_logits = logits[..., :-1, :].contiguous()
    shift_labels = labels[..., 1:].contiguous()
    shift_logits = shift_logits.view(-1, self.config.vocab_size)
    shift_labels = shift_labels.view(-1)
    loss = F.cross_entropy(shift_logits, shift_labels, ignore_index=-100)
    return {"loss": loss, "logits": logits}
