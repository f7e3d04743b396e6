"""Parameter inventories against transformers' own models, and adapter counts against PEFT's, all on the meta device.

Exact, no tolerance: a count is right or wrong. Written against transformers 5.23.0 and peft 0.21.2.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping

import pytest

from llamamath.planner.architecture import FAMILIES
from llamamath.planner.job import Lora
from llamamath.planner.model_files.config_file import architecture_from_config
from llamamath.planner.parameters import adapted_weights, count_parameters, lora_parameters, trainable_parameters, weights
from llamamath.profiles.models import ModelProfile, all_models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # transformers' and PEFT's own

SIZES = {"vocab_size": 320, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6}
GROUPED = SIZES | {"num_key_value_heads": 2}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_global_layers": 2,
    "attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "intermediate_layers_indices": [0, 2],
    "vision_output_dim": 144,
}
MLLAMA_TEXT = GROUPED | {"num_hidden_layers": 6, "cross_attention_layers": [1, 4]}
CONFIGS: list[dict[str, object]] = [
    {"model_type": "llama", **SIZES},
    {"model_type": "llama", **GROUPED, "attention_bias": True, "tie_word_embeddings": True},
    {"model_type": "llama", **GROUPED, "mlp_bias": True, "head_dim": 20, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    {"model_type": "qwen2", **GROUPED, "tie_word_embeddings": True},
    {"model_type": "qwen2", **SIZES, "num_key_value_heads": 6, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    {"model_type": "qwen2", **GROUPED, "head_dim": 24},
    {"model_type": "qwen3", **GROUPED},
    {"model_type": "qwen3", **GROUPED, "head_dim": 10, "attention_bias": True, "tie_word_embeddings": True},
    {"model_type": "mistral", **GROUPED},
    {"model_type": "mistral", **GROUPED, "head_dim": 30, "sliding_window": None, "tie_word_embeddings": True},
    {"model_type": "mistral", **SIZES, "num_attention_heads": 8},
    {"model_type": "gemma2", **GROUPED},
    {"model_type": "gemma2", **GROUPED, "head_dim": 14, "attention_bias": True, "tie_word_embeddings": False},
    {"model_type": "phi3", **SIZES, "pad_token_id": 0},
    {"model_type": "phi3", **GROUPED, "pad_token_id": 0, "tie_word_embeddings": True, "rope_parameters": {"partial_rotary_factor": 0.5}},
    {"model_type": "granite", **SIZES},
    {"model_type": "granite", **GROUPED, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    {"model_type": "mllama", "text_config": {**MLLAMA_TEXT, "pad_token_id": 0}, "vision_config": VISION},
    {
        "model_type": "mllama",
        "text_config": {**MLLAMA_TEXT, "pad_token_id": 0, "tie_word_embeddings": True, "num_key_value_heads": 6},
        "vision_config": VISION | {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "num_channels": 1},
    },
    {"model_type": "mllama", "text_config": {}, "vision_config": {}},
    {"model_type": "mllama_text_model", **MLLAMA_TEXT, "pad_token_id": 0},
]
DISTINCT: dict[str, ModelProfile] = {}
for _profile in all_models():
    DISTINCT.setdefault(json.dumps(_profile.config, sort_keys=True), _profile)


def label(config: Mapping[str, object]) -> str:
    """A readable test id."""
    extra = [key for key in config if key not in SIZES and key not in ("model_type", "text_config", "vision_config", "pad_token_id")]
    return "-".join([str(config["model_type"]), *extra])


def build(config: Mapping[str, object]):  # type: ignore[no-untyped-def]
    """transformers' own model for `config`, without memory."""
    values = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    family = values.pop("model_type")
    if family == "mllama_text_model":
        with torch.device("meta"):
            return transformers.MllamaForCausalLM(transformers.models.mllama.MllamaTextConfig(**values))
    made = transformers.AutoConfig.for_model(family, **values)
    cls = transformers.MllamaForConditionalGeneration if family == "mllama" else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        return cls._from_config(made) if family == "mllama" else cls.from_config(made)


def inventory(model) -> Counter[tuple[str, tuple[int, ...]]]:  # type: ignore[no-untyped-def]
    """(parameter name with layer indices cut out, shape) -> how often; a tied parameter counts once."""
    return Counter((re.sub(r"\.[0-9]+\.", ".{layer}.", name), tuple(parameter.shape)) for name, parameter in model.named_parameters())


def check_against_model(config: Mapping[str, object]) -> None:
    """Total, names, shapes and numbers of copies agree."""
    architecture = architecture_from_config(config, "test")
    model = build(config)
    assert count_parameters(architecture) == sum(parameter.numel() for parameter in model.parameters())
    ours: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for weight in weights(architecture):
        ours[weight.name, weight.shape] += weight.copies
        assert weight.copies == (len(weight.layers) if "{layer}" in weight.name else 1)
    assert ours == inventory(model)


def test_every_family_is_covered_twice() -> None:
    counts = Counter(str(config["model_type"]) for config in CONFIGS)
    assert all(counts[family] >= 2 for family in FAMILIES)


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_count_and_inventory_equal_transformers(config: dict[str, object]) -> None:
    check_against_model(config)


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_linears_are_what_bitsandbytes_would_quantise(config: dict[str, object]) -> None:
    base = pytest.importorskip("transformers.quantizers.base")
    model = build(config)
    kept = set(base.get_keys_to_not_convert(model))
    theirs = sum(isinstance(module, torch.nn.Linear) and name not in kept for name, module in model.named_modules())
    assert sum(weight.copies for weight in weights(architecture_from_config(config, "test")) if weight.role == "linear") == theirs


@pytest.mark.parametrize("profile", DISTINCT.values(), ids=lambda profile: profile.short_name)
def test_profiles_equal_transformers(profile: ModelProfile) -> None:
    check_against_model(profile.config)
    assert count_parameters(architecture_from_config(profile.config, profile.id)) == profile.parameters


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_fields_that_decide_memory_equal_transformers(config: dict[str, object]) -> None:
    architecture = architecture_from_config(config, "test")
    text = build(config).config.get_text_config()
    assert architecture.hidden_size == text.hidden_size
    assert architecture.num_key_value_heads == text.num_key_value_heads
    assert architecture.max_position_embeddings == text.max_position_embeddings
    assert architecture.attn_logit_softcapping == getattr(text, "attn_logit_softcapping", None)
    assert architecture.final_logit_softcapping == getattr(text, "final_logit_softcapping", None)
    types = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    if types is None:
        types = ["full_attention" if window is None else "sliding_attention"] * text.num_hidden_layers
    sliding = tuple(index for index, kind in enumerate(types) if kind == "sliding_attention")
    assert architecture.sliding_layers == sliding
    assert architecture.sliding_window == (window if sliding else None)


def peft_trainable(config: Mapping[str, object], lora: Lora) -> int:
    """Trainable parameters after PEFT has put the adapter on."""
    peft = pytest.importorskip("peft")
    model = build(config)
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    settings = peft.LoraConfig(r=lora.r, target_modules=targets, use_dora=lora.use_dora)
    with torch.device("meta"):
        adapted = peft.get_peft_model(model, settings)
    return sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)


def targets_for(config: Mapping[str, object]) -> tuple[str, ...]:
    """A usual explicit choice for the family."""
    return ("qkv_proj", "down_proj") if config["model_type"] == "phi3" else ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("config", CONFIGS, ids=label)
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_adapters_on_all_linears_equal_peft(config: dict[str, object], use_dora: bool) -> None:
    lora = Lora(r=4, use_dora=use_dora)
    architecture = architecture_from_config(config, "test")
    assert lora_parameters(architecture, lora) == peft_trainable(config, lora)
    assert trainable_parameters(architecture, lora) == lora_parameters(architecture, lora)
    assert trainable_parameters(architecture, None) == count_parameters(architecture)


@pytest.mark.parametrize("config", CONFIGS, ids=label)
def test_adapters_on_named_modules_equal_peft(config: dict[str, object]) -> None:
    lora = Lora(r=3, target_modules=targets_for(config))
    assert lora_parameters(architecture_from_config(config, "test"), lora) == peft_trainable(config, lora)


@pytest.mark.parametrize(
    "targets",
    [
        ("lm_head",),
        ("embed_tokens", "q_proj"),
        ("layers.1.mlp.down_proj",),
        ("mlp.up_proj", "model.layers.0.self_attn.q_proj"),
        r".*layers\.[02]\.self_attn\.[qv]_proj",
        "ALL-LINEAR",
    ],
    ids=str,
)
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_unusual_targets_equal_peft(targets: str | tuple[str, ...], use_dora: bool) -> None:
    lora = Lora(r=4, target_modules=targets, use_dora=use_dora)
    for config in (CONFIGS[0], CONFIGS[1]):
        assert lora_parameters(architecture_from_config(config, "test"), lora) == peft_trainable(config, lora)


@pytest.mark.parametrize(
    "targets",
    [
        ("fc1", "multi_modal_projector"),
        ("patch_embedding",),
        ("tile_embedding",),
        r".*language_model.*\.q_proj",
        ("cross_attn.q_proj",),
        ("layers.1.cross_attn.k_proj", "layers.1.mlp.fc2"),
    ],
    ids=str,
)
def test_mllama_targets_equal_peft(targets: str | tuple[str, ...]) -> None:
    config = next(config for config in CONFIGS if config["model_type"] == "mllama")
    lora = Lora(r=2, target_modules=targets)
    architecture = architecture_from_config(config, "test")
    assert lora_parameters(architecture, lora) == peft_trainable(config, lora)
    assert all(weight.copies == max(1, len(weight.layers)) for weight in adapted_weights(architecture, lora))


def test_dora_on_a_convolution_equals_peft() -> None:
    config = next(config for config in CONFIGS if config["model_type"] == "mllama")
    lora = Lora(r=2, target_modules=("patch_embedding",), use_dora=True)
    assert lora_parameters(architecture_from_config(config, "test"), lora) == peft_trainable(config, lora)
