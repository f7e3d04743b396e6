"""From a transformers `config.json`, a profile's name or a hub id to an Architecture.

Absent keys take the defaults of transformers 5.23's `configuration_<family>.py`, except for the five sizes that no real
configuration leaves out: those are required. What a configuration says about its layers is checked, also against the checkpoint
that lies beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from llamamath.errors import FieldError, UnknownNameError, UsageError, closest_names
from llamamath.planner.architecture import FAMILIES, Architecture, VisionArchitecture
from llamamath.planner.model_files.checkpoint import check_checkpoint
from llamamath.planner.model_files.config_fields import MISSING, Fields, show
from llamamath.profiles.models import find_model, model_names

MAX_CONFIG_BYTES = 16 * 2**20
"""Far above any real config.json; a larger file is something else."""

TEXT_ONLY_MLLAMA = "mllama_text_model"
LAYER_TYPES = ("full_attention", "sliding_attention")
MLLAMA_CROSS_LAYERS = (3, 8, 13, 18, 23, 28, 33, 38)
MLLAMA_VISION_INDICES = (3, 7, 15, 23, 30)
MLLAMA_ASPECT_RATIOS = 8
_MOST_LAYERS, _MOST_WIDTH, _MOST_HEADS, _MOST_TOKENS = 1_000, 1_000_000, 10_000, 1_000_000_000

_KEY_VALUE_HEADS = {"qwen2": 32, "qwen3": 32, "mistral": 8, "gemma2": 4, "mllama": 8}
"""`num_key_value_heads` where the key is absent; the other families, and null except for mllama, take num_attention_heads."""
_HEAD_DIMS = {"qwen3": 128, "gemma2": 256}
"""`head_dim` where the key is absent; the other families divide hidden_size by the heads."""
_POSITIONS = {"llama": 2048, "qwen2": 32768, "qwen3": 32768, "mistral": 131072, "gemma2": 8192, "phi3": 4096, "granite": 2048}


def load_config(path: Path) -> dict[str, object]:
    """The object in `path`, a config.json or a directory holding one. Raises UsageError for anything else; never a traceback."""
    try:
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise _no_config(path)
            path = path / "config.json"
        if not path.is_file():
            problem = "not a regular file" if path.exists() else "no such file"
            raise UsageError(f"{path}: {problem}", "give a config.json, a directory that holds one, a profile or a hub id")
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UsageError(f"{path}: too large for a config.json", f"at most {MAX_CONFIG_BYTES:,} bytes are read")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error})", "check the path and its permissions") from error
    return parse_config(data, str(path))


def parse_config(data: bytes, where: str) -> dict[str, object]:
    """The JSON object in `data`. Raises UsageError naming `where` when it is not UTF-8, not JSON, cut off, or not an object."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise UsageError(f"{where}: nested too deeply for a config.json") from error
    except ValueError as error:
        raise UsageError(f"{where}: not valid JSON ({error})", "is the file complete? download it again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{where}: holds a JSON {type(value).__name__}, not an object")
    return value


def resolve_model(name_or_path: str) -> Architecture:
    """The Architecture of a local directory or config.json, a profile (any spelling, see `find_model`), or a hub id.

    Local files come first, as in transformers; then profiles; then the hub's cache on this machine; then the hub itself.
    Raises UsageError for a file that cannot be used, UnknownNameError with the closest profiles for a name nobody knows.
    """
    name = name_or_path.strip()
    path = _local_path(name)
    if path is not None:
        config = load_config(path)
        architecture = architecture_from_config(config, name)
        check_checkpoint(path if path.is_dir() else path.parent, architecture, quantized=bool(config.get("quantization_config")))
        return architecture
    profile = find_model(name)
    if profile is not None:
        return architecture_from_config(profile.config, profile.id)
    from llamamath.planner.model_files.hub import find_config

    data, reason = find_config(name)
    if data is not None:
        return architecture_from_config(parse_config(data, f"config.json of {name}"), name)
    short = {known.rpartition("/")[2]: known for known in model_names()}
    closest = closest_names(name, model_names()) or tuple(short[key] for key in closest_names(name.rpartition("/")[2], short))
    raise UnknownNameError("model", name, closest, f"{reason}; give a profile, a hub id, or a local config.json")


def architecture_from_config(config: Mapping[str, object], name: str) -> Architecture:
    """The Architecture that transformers would build from `config`. `name` goes into the result and into error messages.

    Raises FieldError (exit 2) naming the field when a value is missing, of the wrong type, out of bounds or at odds with another.
    """
    fields = Fields(config, name)
    _check_quantization(fields)
    family = config.get("model_type")
    if family == TEXT_ONLY_MLLAMA:
        return _mllama(fields, None, name)
    if not isinstance(family, str) or family not in FAMILIES:
        closest = closest_names(family, FAMILIES) if isinstance(family, str) else ()
        raise fields.error("model_type", family, ", ".join(FAMILIES), closest)
    if family == "mllama":
        return _mllama(fields.nested("text_config"), fields.nested("vision_config"), name)
    return _decoder(fields, family, name)


def _decoder(fields: Fields, family: str, name: str) -> Architecture:
    hidden = fields.integer("hidden_size", 1, _MOST_WIDTH)
    layers = fields.integer("num_hidden_layers", 1, _MOST_LAYERS)
    heads, key_value_heads = _heads(fields, family)
    if family in ("llama", "gemma2") and hidden % heads:
        raise fields.error("hidden_size", hidden, f"a multiple of num_attention_heads ({heads}), as transformers requires")
    default_dim = _HEAD_DIMS.get(family, hidden // heads)
    if default_dim < 1:
        raise fields.error("num_attention_heads", heads, f"at most hidden_size ({hidden})")
    window, sliding = _sliding(fields, family, layers)
    bias = family in ("llama", "qwen3", "gemma2", "granite") and fields.boolean("attention_bias", False)
    return Architecture(
        family=family,
        name=name,
        vocab_size=fields.integer("vocab_size", 1, _MOST_WIDTH * 10),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", 1, _MOST_WIDTH * 10),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=fields.integer("head_dim", 1, _MOST_WIDTH, default_dim),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", family == "gemma2"),
        max_position_embeddings=fields.integer("max_position_embeddings", 1, _MOST_TOKENS, _POSITIONS[family]),
        attention_bias=bias or family == "qwen2",
        attention_output_bias=bias,
        mlp_bias=family in ("llama", "granite") and fields.boolean("mlp_bias", False),
        query_key_norm=family == "qwen3",
        fused_projections=family == "phi3",
        post_norms=family == "gemma2",
        partial_rotary_factor=_partial_rotary_factor(fields, family),
        attn_logit_softcapping=fields.optional_number("attn_logit_softcapping", 50.0) if family == "gemma2" else None,
        final_logit_softcapping=fields.optional_number("final_logit_softcapping", 30.0) if family == "gemma2" else None,
        scaled_embeddings=family in ("gemma2", "granite"),
        scaled_residual=family == "granite",
        logits_scaling=fields.number("logits_scaling", 1.0) if family == "granite" else None,
        sliding_window=window,
        sliding_layers=sliding,
    )


def _mllama(text: Fields, vision: Fields | None, name: str) -> Architecture:
    """Llama 3.2 Vision. transformers fills every absent key of the nested objects, and never ties its embeddings, whatever they say."""
    hidden = text.integer("hidden_size", 1, _MOST_WIDTH, 4096)
    layers = text.integer("num_hidden_layers", 1, _MOST_LAYERS, 40)
    heads, key_value_heads = _heads(text, "mllama", 32)
    if hidden % heads:
        raise text.error("hidden_size", hidden, f"a multiple of num_attention_heads ({heads})")
    crossing = text.indices("cross_attention_layers", layers, "num_hidden_layers")
    if crossing is None:
        crossing = tuple(index for index in MLLAMA_CROSS_LAYERS if index < layers)
    text.boolean("tie_word_embeddings", False)
    return Architecture(
        family="mllama",
        name=name,
        vocab_size=text.integer("vocab_size", 1, _MOST_WIDTH * 10, 128256),
        hidden_size=hidden,
        intermediate_size=text.integer("intermediate_size", 1, _MOST_WIDTH * 10, 14336),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        head_dim=hidden // heads,
        tie_word_embeddings=False,
        max_position_embeddings=text.integer("max_position_embeddings", 1, _MOST_TOKENS, 131072),
        partial_rotary_factor=_partial_rotary_factor(text, "mllama"),
        cross_attention_layers=crossing,
        vision=None if vision is None else _vision(vision),
    )


def _vision(fields: Fields) -> VisionArchitecture:
    hidden = fields.integer("hidden_size", 1, _MOST_WIDTH, 1280)
    layers = fields.integer("num_hidden_layers", 1, _MOST_LAYERS, 32)
    # transformers reads both names
    heads_name = "num_attention_heads" if "num_attention_heads" in fields.values else "attention_heads"
    heads = fields.integer(heads_name, 1, _MOST_HEADS, 16)
    if hidden % heads:
        raise fields.error("hidden_size", hidden, f"a multiple of {fields.prefix}{heads_name} ({heads})")
    kept = fields.indices("intermediate_layers_indices", layers + 1, "num_hidden_layers")
    kept = MLLAMA_VISION_INDICES if kept is None else kept
    image, patch = fields.integer("image_size", 1, 100_000, 448), fields.integer("patch_size", 1, 100_000, 14)
    if patch > image:
        raise fields.error("patch_size", patch, f"at most image_size ({image})")
    tiles = fields.integer("max_num_tiles", 1, 1_000, 4)
    ratios = fields.values.get("supported_aspect_ratios")
    if ratios is not None and (not isinstance(ratios, list | tuple) or not 1 <= len(ratios) <= 10_000):
        raise fields.error("supported_aspect_ratios", ratios, "a list of [height, width] pairs")
    if ratios is None and tiles != 4:
        raise fields.error("max_num_tiles", tiles, "4, unless supported_aspect_ratios is given")
    vision = VisionArchitecture(
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size", 1, _MOST_WIDTH * 10, 5120),
        num_hidden_layers=layers,
        num_global_layers=fields.integer("num_global_layers", 1, _MOST_LAYERS, 8),
        attention_heads=heads,
        image_size=image,
        patch_size=patch,
        num_channels=fields.integer("num_channels", 1, 1_000, 3),
        max_num_tiles=tiles,
        max_aspect_ratio_id=MLLAMA_ASPECT_RATIOS if ratios is None else len(ratios),
        intermediate_layers_indices=kept,
    )
    width = fields.integer("vision_output_dim", 1, _MOST_WIDTH * 10, 7680)
    if width != vision.output_dim:
        allowed = f"{vision.output_dim}, which is hidden_size * (1 + the {len(kept)} intermediate_layers_indices)"
        raise fields.error("vision_output_dim", width, allowed)
    return vision


def _heads(fields: Fields, family: str, default: int | object = MISSING) -> tuple[int, int]:
    """(query heads, key-value heads), the second dividing the first."""
    heads = fields.integer("num_attention_heads", 1, _MOST_HEADS, default)
    fallback = _KEY_VALUE_HEADS.get(family, heads)
    if "num_key_value_heads" in fields.values and family != "mllama":
        fallback = heads
    key_value_heads = fields.integer("num_key_value_heads", 1, _MOST_HEADS, fallback)
    if heads % key_value_heads:
        given = "" if fields.values.get("num_key_value_heads") is not None else f" ({family}'s default where the key is absent)"
        raise fields.error("num_key_value_heads", key_value_heads, f"a divisor of num_attention_heads ({heads}){given}")
    return heads, key_value_heads


def _sliding(fields: Fields, family: str, layers: int) -> tuple[int | None, tuple[int, ...]]:
    """(window in tokens, layers that have it); (None, ()) where every layer sees everything."""
    types = fields.choices("layer_types", LAYER_TYPES, layers, "num_hidden_layers")
    window = fields.optional_integer("sliding_window", 1, _MOST_TOKENS, 4096 if family in ("qwen2", "qwen3", "mistral", "gemma2") else None)
    if family in ("qwen2", "qwen3"):
        first = fields.integer("max_window_layers", 0, _MOST_TOKENS, 28)
        if not fields.boolean("use_sliding_window", False):
            return None, ()
        types = types or tuple(LAYER_TYPES[index >= first] for index in range(layers))
    elif family == "gemma2":
        types = types or tuple(LAYER_TYPES[index % 2 == 0] for index in range(layers))
    elif family in ("mistral", "phi3"):
        types = (LAYER_TYPES[1],) * layers
    else:
        return None, ()
    sliding = tuple(index for index, kind in enumerate(types) if kind == LAYER_TYPES[1])
    return (window, sliding) if window and sliding else (None, ())


def _partial_rotary_factor(fields: Fields, family: str) -> float:
    """Share of a head that is rotated. Only phi3's rotary embedding reads it; the objects' types are checked for all families."""
    rope, old = fields.optional_nested("rope_parameters"), fields.optional_nested("rope_scaling")
    fields.number("rope_theta", 10_000.0)
    if family != "phi3":
        return 1.0
    factor = fields.number("partial_rotary_factor", 1.0)
    for place in (old, rope):
        if place is not None:
            factor = place.number("partial_rotary_factor", factor)
    if factor > 1:
        raise fields.error("partial_rotary_factor", factor, "above 0 and at most 1")
    return factor


def _check_quantization(fields: Fields) -> None:
    """bitsandbytes checkpoints describe the same architecture; of other methods the weights cannot be trained on here."""
    quantization = fields.optional_nested("quantization_config")
    if quantization is None or not quantization.values:
        return
    method = quantization.values.get("quant_method")
    if method is None and ("load_in_4bit" in quantization.values or "load_in_8bit" in quantization.values):
        return
    if method != "bitsandbytes":
        raise FieldError(
            "quantization_config.quant_method",
            show(method),
            "bitsandbytes, or no quantization_config",
            hint=f"checkpoints of other methods (gptq, awq, fp8 ...) are not supported: use the unquantised model of {fields.where}",
        )


def _local_path(name: str) -> Path | None:
    """The path that `name` means: something that exists here, or something written as a path. None for a profile or hub id."""
    try:
        path = Path(name).expanduser()
        if path.is_file() or (path.is_dir() and name and ((path / "config.json").exists() or find_model(name) is None)):
            return path
    except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, or the home of nobody: not a file
        return None
    written = name.startswith(("/", "./", "../", "~", ".\\", "..\\")) or name in (".", "..") or name.endswith((".json", "/"))
    return path if written else None


def _no_config(directory: Path) -> UsageError:
    adapter = directory / "adapter_config.json"
    if adapter.is_file():
        return UsageError(f"{directory}: holds a LoRA adapter, not a model", "give the base model that adapter_config.json names")
    return UsageError(f"{directory}: no config.json in this directory", "give the directory of a transformers checkpoint")
