"""Every weight tensor of an Architecture, so that counts and quantised sizes are sums over real shapes, not `params * bits`.

Names, shapes and biases are those of transformers 5.23's modelling code (`models/<family>/modeling_<family>.py`). Which modules an adapter
lands on follows PEFT 0.21's `_maybe_include_all_linear_layers` and `check_target_module_exists`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from llamamath.errors import FieldError, closest_names
from llamamath.planner.architecture import Architecture, VisionArchitecture
from llamamath.planner.job import ALL_LINEAR, Lora

Matcher = Callable[[str], object]
"""Truthy for a module path that a target names."""

MLLAMA_EXTRA_EMBEDDINGS = 8
"""Rows that Mllama's embedding has beyond `vocab_size`: transformers' `MllamaTextModel.embed_tokens`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """`copies` tensors of one `shape`. `name` is the parameter path with `{layer}` in place of the layer index.

    role: `embedding`, `lm_head`, `linear` (weight of an nn.Linear other than lm_head, so quantised by bitsandbytes and adapted by
    `all-linear`), `bias`, `norm`, or `other` (convolutions, positional tables, gates: never quantised, never adapted by `all-linear`).
    tower: `text`, `vision` or `projector`. shape of a linear is (out_features, in_features), as in torch.
    layers: the indices that stand for `{layer}`, one per copy; empty for a weight outside the layers.
    """

    name: str
    shape: tuple[int, ...]
    role: str
    copies: int = 1
    tower: str = "text"
    layers: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        """Elements of one tensor."""
        return prod(self.shape)

    @property
    def module(self) -> str:
        """The last module name, which LoRA's `target_modules` matches: `q_proj` of `model.layers.{layer}.self_attn.q_proj.weight`."""
        return self.name.rsplit(".", 2)[-2]


@lru_cache(maxsize=256)
def weights(architecture: Architecture) -> tuple[Weight, ...]:
    """Every parameter of the model as transformers builds it; a tied lm_head is not listed, since it is the embedding."""
    found: list[Weight] = []
    prefix = "model."
    if architecture.vision is not None:
        found.extend(_vision_weights(architecture.vision))
        prefix = "model.language_model."
    found.extend(_text_weights(architecture, prefix))
    if architecture.vision is not None:
        found.extend(_linear("model.multi_modal_projector", architecture.hidden_size, architecture.vision.output_dim, True, "projector"))
    if not architecture.tie_word_embeddings:
        found.append(_lm_head(architecture))
    return tuple(found)


def count_parameters(architecture: Architecture) -> int:
    """Parameters of the whole model, image tower included, tied embeddings counted once."""
    return sum(weight.numel * weight.copies for weight in weights(architecture))


def adapted_weights(architecture: Architecture, lora: Lora) -> tuple[Weight, ...]:
    """The base weights that `lora` puts an adapter on, with `copies` and `layers` cut down to the adapted ones.

    `all-linear` takes every linear but the output embedding, in all towers. Names match the end of a module's path; any other string is
    a regular expression over the whole path. Raises FieldError for a target that matches nothing or something PEFT cannot adapt.
    """
    targets = lora.target_modules
    return _adapted(architecture, targets if isinstance(targets, str) else tuple(targets))


def lora_parameters(architecture: Architecture, lora: Lora) -> int:
    """Trainable parameters of `lora`: r * (in + out) per adapted linear, and with DoRA its magnitude vector.

    A convolution's A has the kernel's extent, an embedding's A one column per row. DoRA's magnitude has one entry per output row
    of the weight; for an embedding that is its width. Same errors as `adapted_weights`.
    """
    total = 0
    for weight in adapted_weights(architecture, lora):
        out_features, in_size = weight.shape[0], weight.numel // weight.shape[0]
        magnitude = 0
        if lora.use_dora:
            magnitude = weight.shape[1] if _is_embedding(weight) else out_features
        total += weight.copies * (lora.r * (in_size + out_features) + magnitude)
    return total


def trainable_parameters(architecture: Architecture, lora: Lora | None) -> int:
    """Parameters that receive gradients: the adapters, or all of the model when `lora` is None."""
    return count_parameters(architecture) if lora is None else lora_parameters(architecture, lora)


def _linear(
    path: str, out_features: int, in_features: int, bias: bool, tower: str = "text", layers: tuple[int, ...] = ()
) -> Iterator[Weight]:
    copies = len(layers) if layers else 1
    yield Weight(name=f"{path}.weight", shape=(out_features, in_features), role="linear", copies=copies, tower=tower, layers=layers)
    if bias:
        yield Weight(name=f"{path}.bias", shape=(out_features,), role="bias", copies=copies, tower=tower, layers=layers)


def _norm(path: str, size: int, layers: tuple[int, ...] = (), tower: str = "text", bias: bool = False) -> Iterator[Weight]:
    for kind in ("weight", "bias") if bias else ("weight",):
        yield Weight(name=f"{path}.{kind}", shape=(size,), role="norm", copies=len(layers) or 1, tower=tower, layers=layers)


def _other(name: str, shape: tuple[int, ...], tower: str, layers: tuple[int, ...] = ()) -> Weight:
    return Weight(name=name, shape=shape, role="other", copies=len(layers) or 1, tower=tower, layers=layers)


def _lm_head(architecture: Architecture) -> Weight:
    return Weight(name="lm_head.weight", shape=(architecture.vocab_size, architecture.hidden_size), role="lm_head")


def _qwen_weights(architecture: Architecture) -> Iterator[Weight]:
    """Qwen 1 (`modeling_qwen.py`): only c_attn has a bias. Known for comparisons with published runs, not as a family to plan for."""
    hidden, inner, layers = architecture.hidden_size, architecture.intermediate_size, tuple(range(architecture.num_hidden_layers))
    layer = "transformer.h.{layer}"
    yield Weight(name="transformer.wte.weight", shape=(architecture.vocab_size, hidden), role="embedding")
    yield from _linear(f"{layer}.attn.c_attn", 3 * hidden, hidden, True, layers=layers)
    yield from _linear(f"{layer}.attn.c_proj", hidden, hidden, False, layers=layers)
    yield from _linear(f"{layer}.mlp.w1", inner, hidden, False, layers=layers)
    yield from _linear(f"{layer}.mlp.w2", inner, hidden, False, layers=layers)
    yield from _linear(f"{layer}.mlp.c_proj", hidden, inner, False, layers=layers)
    for norm in ("ln_1", "ln_2"):
        yield from _norm(f"{layer}.{norm}", hidden, layers)
    yield from _norm("transformer.ln_f", hidden)


def _text_weights(architecture: Architecture, prefix: str) -> Iterator[Weight]:
    if architecture.family == "qwen":
        yield from _qwen_weights(architecture)
        return
    hidden, layer = architecture.hidden_size, f"{prefix}layers.{{layer}}"
    everywhere = tuple(range(architecture.num_hidden_layers))
    crossing = architecture.cross_attention_layers
    attending = tuple(index for index in everywhere if index not in crossing)
    rows = architecture.vocab_size + (MLLAMA_EXTRA_EMBEDDINGS if architecture.family == "mllama" else 0)
    yield Weight(name=f"{prefix}embed_tokens.weight", shape=(rows, hidden), role="embedding")
    if attending:
        yield from _attention(architecture, f"{layer}.self_attn", attending, architecture.query_key_norm)
    if crossing:
        yield from _attention(architecture, f"{layer}.cross_attn", crossing, True)
        yield _other(f"{layer}.cross_attn_attn_gate", (1,), "text", crossing)
        yield _other(f"{layer}.cross_attn_mlp_gate", (1,), "text", crossing)
    inner, bias = architecture.intermediate_size, architecture.mlp_bias
    if architecture.fused_projections:
        yield from _linear(f"{layer}.mlp.gate_up_proj", 2 * inner, hidden, bias, layers=everywhere)
    else:
        yield from _linear(f"{layer}.mlp.gate_proj", inner, hidden, bias, layers=everywhere)
        yield from _linear(f"{layer}.mlp.up_proj", inner, hidden, bias, layers=everywhere)
    yield from _linear(f"{layer}.mlp.down_proj", hidden, inner, bias, layers=everywhere)
    norms = ["input_layernorm", "post_attention_layernorm"]
    if architecture.post_norms:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for norm in norms:
        yield from _norm(f"{layer}.{norm}", hidden, everywhere)
    yield from _norm(f"{prefix}norm", hidden)


def _attention(architecture: Architecture, path: str, layers: tuple[int, ...], head_norms: bool) -> Iterator[Weight]:
    hidden, query, key_value = architecture.hidden_size, architecture.query_size, architecture.key_value_size
    bias = architecture.attention_bias
    if architecture.fused_projections:
        yield from _linear(f"{path}.qkv_proj", query + 2 * key_value, hidden, bias, layers=layers)
    else:
        yield from _linear(f"{path}.q_proj", query, hidden, bias, layers=layers)
        yield from _linear(f"{path}.k_proj", key_value, hidden, bias, layers=layers)
        yield from _linear(f"{path}.v_proj", key_value, hidden, bias, layers=layers)
    yield from _linear(f"{path}.o_proj", hidden, query, architecture.attention_output_bias, layers=layers)
    if head_norms:
        yield from _norm(f"{path}.q_norm", architecture.head_dim, layers)
        yield from _norm(f"{path}.k_norm", architecture.head_dim, layers)


def _vision_weights(vision: VisionArchitecture) -> Iterator[Weight]:
    width, root = vision.hidden_size, "model.vision_model"
    tiles, ids = vision.max_num_tiles, vision.max_aspect_ratio_id + 1
    patch = (width, vision.num_channels, vision.patch_size, vision.patch_size)
    yield _other(f"{root}.class_embedding", (width,), "vision")
    yield _other(f"{root}.patch_embedding.weight", patch, "vision")
    yield _other(f"{root}.gated_positional_embedding.gate", (1,), "vision")
    yield _other(f"{root}.gated_positional_embedding.embedding", (vision.patches_per_tile, width), "vision")
    table = (ids, tiles * vision.patches_per_tile * width)
    yield _other(f"{root}.gated_positional_embedding.tile_embedding.weight", table, "vision")
    for position in ("pre", "post"):
        yield _other(f"{root}.{position}_tile_positional_embedding.gate", (1,), "vision")
        yield _other(f"{root}.{position}_tile_positional_embedding.embedding.weight", (ids, tiles * width), "vision")
        yield from _norm(f"{root}.layernorm_{position}", width, tower="vision", bias=True)
    for encoder, count in (("transformer", vision.num_hidden_layers), ("global_transformer", vision.num_global_layers)):
        layers, layer = tuple(range(count)), f"{root}.{encoder}.layers.{{layer}}"
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield from _linear(f"{layer}.self_attn.{projection}", width, width, False, "vision", layers)
        yield from _linear(f"{layer}.mlp.fc1", vision.intermediate_size, width, True, "vision", layers)
        yield from _linear(f"{layer}.mlp.fc2", width, vision.intermediate_size, True, "vision", layers)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from _norm(f"{layer}.{norm}", width, layers, "vision", bias=True)
        if encoder == "global_transformer":
            yield _other(f"{layer}.gate_attn", (1,), "vision", layers)
            yield _other(f"{layer}.gate_ffn", (1,), "vision", layers)


def _is_embedding(weight: Weight) -> bool:
    """The weight is an nn.Embedding's: the token embedding, or one of the vision tower's positional tables."""
    return weight.role == "embedding" or (weight.role == "other" and len(weight.shape) == 2)


def _modules(architecture: Architecture) -> tuple[Weight, ...]:
    """Weights of the modules PEFT can adapt: linears, embeddings, convolutions, and lm_head even where it is tied."""
    found = [weight for weight in weights(architecture) if weight.name.endswith(".weight") and weight.role not in ("norm", "bias")]
    if architecture.tie_word_embeddings:
        found.append(_lm_head(architecture))
    return tuple(found)


def _paths(weight: Weight) -> Iterator[tuple[int | None, str]]:
    """(layer index, module path) of every copy."""
    template = weight.name.rsplit(".", 1)[0]
    if not weight.layers:
        yield None, template
    for index in weight.layers:
        yield index, template.replace("{layer}", str(index))


@lru_cache(maxsize=1024)
def _adapted(architecture: Architecture, targets: str | tuple[str, ...]) -> tuple[Weight, ...]:
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        return tuple(weight for weight in weights(architecture) if weight.role == "linear")
    modules = _modules(architecture)
    matchers = [_matcher(targets)] if isinstance(targets, str) else [_suffix_matcher(name) for name in dict.fromkeys(targets)]
    if not matchers:
        raise _no_match(architecture, (), "target_modules is empty")
    hits: dict[Weight, list[int | None]] = {}
    unmatched = set(range(len(matchers)))
    for weight in modules:
        for index, path in _paths(weight):
            matched = {number for number, matcher in enumerate(matchers) if matcher(path)}
            if matched:
                hits.setdefault(weight, []).append(index)
                unmatched -= matched
    if unmatched:
        names = (targets,) if isinstance(targets, str) else tuple(dict.fromkeys(targets))
        hint = "a string other than all-linear is a regular expression over the whole path, as in PEFT; names go in a list"
        raise _no_match(architecture, tuple(names[number] for number in sorted(unmatched)), hint if isinstance(targets, str) else "")
    _refuse_others(architecture, matchers, targets)
    return tuple(_narrowed(weight, indices) for weight, indices in hits.items())


def _narrowed(weight: Weight, indices: list[int | None]) -> Weight:
    layers = tuple(index for index in indices if index is not None)
    return replace(weight, copies=len(indices), layers=layers)


def _suffix_matcher(name: str) -> Matcher:
    return re.compile(rf"(?:^|\.){re.escape(name)}\Z").search


def _matcher(expression: str) -> Matcher:
    try:
        return re.compile(expression).fullmatch
    except (re.error, RecursionError, OverflowError) as error:
        raise FieldError("lora.target_modules", expression, f"all-linear, a list of names, or a regular expression ({error})") from error


def _refuse_others(architecture: Architecture, matchers: list[Matcher], targets: str | tuple[str, ...]) -> None:
    """Norms and whole blocks cannot carry an adapter: PEFT raises for them, so this does too."""
    adaptable = {path for weight in _modules(architecture) for _, path in _paths(weight)}
    present: set[str] = set()
    for weight in weights(architecture):
        for _, path in _paths(weight):
            while path:
                present.add(path)
                path = path.rpartition(".")[0]
    for path in sorted(present - adaptable):
        if any(matcher(path) for matcher in matchers):
            shown = targets if isinstance(targets, str) else list(targets)
            allowed = f"linears, embeddings and convolutions; this also matches {path}, which PEFT cannot adapt"
            raise FieldError("lora.target_modules", shown, allowed)


def _no_match(architecture: Architecture, missing: tuple[str, ...], hint: str) -> FieldError:
    names = sorted({weight.module for weight in _modules(architecture)})
    linears = sorted({weight.module for weight in weights(architecture) if weight.role == "linear"})
    closest = closest_names(missing[0], names) if missing else ()
    value = missing[0] if len(missing) == 1 else list(missing)
    allowed = f"{ALL_LINEAR}, or modules of {architecture.name}: {', '.join(linears)} (also {', '.join(sorted(set(names) - set(linears)))})"
    return FieldError("lora.target_modules", value, allowed, closest, hint)
