"""Profiles, reading of configurations, adapter targets. Without torch, without network."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamath.errors import FieldError, UnknownNameError, UsageError
from llamamath.planner.architecture import FAMILIES, Architecture
from llamamath.planner.job import Lora
from llamamath.planner.model_files.config_file import architecture_from_config, resolve_model
from llamamath.planner.parameters import adapted_weights, count_parameters, lora_parameters, weights
from llamamath.profiles.models import all_models, find_model, model_names

LLAMA: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
MLLAMA: dict[str, object] = {"model_type": "mllama", "text_config": {}, "vision_config": {}}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, no cache of the person who runs the tests, no proxy between a test and its loopback server."""
    for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty-cache"))


def read(config: Mapping[str, object], **changes: object) -> Architecture:
    """`config` with `changes`, read."""
    return architecture_from_config({**config, **changes}, "test")


# Profiles


def test_every_profile_says_where_it_comes_from_and_counts_right() -> None:
    for profile in all_models():
        assert profile.source.startswith("https://huggingface.co/"), profile.id
        assert profile.accessed == "2026-11-21" and profile.checked and profile.license, profile.id
        assert profile.parameters_source in ("published", "computed"), profile.id
        assert count_parameters(architecture_from_config(profile.config, profile.id)) == profile.parameters, profile.id


def test_profile_names_are_unambiguous() -> None:
    assert len(set(model_names())) == len(model_names())
    for profile in all_models():
        for name in (profile.id, profile.short_name, *profile.aliases):
            assert find_model(name) is profile, name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B"),
        ("LLAMA_3_2_1B", "meta-llama/Llama-3.2-1B"),
        ("Llama3.2:1b", "meta-llama/Llama-3.2-1B"),
        ("Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
        ("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
        ("https://huggingface.co/meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("llama-3-8b", "meta-llama/Meta-Llama-3-8B"),
        ("qwen2.5-math-1.5b", "Qwen/Qwen2.5-Math-1.5B"),
        ("gemma2-2b", "google/gemma-2-2b"),
    ],
)
def test_spellings(name: str, expected: str) -> None:
    profile = find_model(name)
    assert profile is not None and profile.id == expected
    assert resolve_model(name).name == expected


@pytest.mark.parametrize(
    "name", ["qwen2.5-15b", "llama-321b", "someone/Llama-3.2-1B", "", "/", "..", "llama", "\0", "x" * 5000, "~nobody-here/x"]
)
def test_other_names_are_not_guessed(name: str) -> None:
    assert find_model(name) is None
    with pytest.raises(UsageError):
        resolve_model(name)


def test_unknown_name_offers_the_closest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve_model("meta-lama/Llama-3.2-1B-Instrct")
    assert "meta-llama/Llama-3.2-1B-Instruct" in caught.value.closest and caught.value.exit_code == 2
    assert "HF_HUB_OFFLINE" in caught.value.hint and "config.json" in caught.value.hint


def test_planning_imports_neither_network_nor_toml_nor_torch() -> None:
    code = (
        "import sys, llamamath.planner.model_files.config_file, llamamath.planner.model_files.hub;"
        "print([m for m in ('urllib.request', 'ssl', 'http', 'tomllib', 'torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# Reading configurations


def test_defaults_are_transformers_own() -> None:
    bare = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    llama = read(bare)
    assert (llama.num_key_value_heads, llama.head_dim, llama.tie_word_embeddings, llama.max_position_embeddings) == (6, 16, False, 2048)
    assert read(LLAMA, model_type="gemma2", head_dim=None).head_dim == 256
    assert read(LLAMA, model_type="gemma2").tie_word_embeddings and read(LLAMA, model_type="gemma2").sliding_layers == (0, 2)
    assert read(LLAMA, model_type="qwen3").head_dim == 128 and read(LLAMA, model_type="qwen3").query_key_norm
    assert read(LLAMA, model_type="mistral").sliding_layers == (0, 1, 2) and read(LLAMA, model_type="mistral").sliding_window == 4096
    assert read(LLAMA, model_type="mistral", sliding_window=None).sliding_window is None
    qwen = read(LLAMA, model_type="qwen2", sliding_window=64)
    assert qwen.attention_bias and not qwen.attention_output_bias and qwen.sliding_window is None
    granite = read(LLAMA, model_type="granite", logits_scaling=8)
    assert granite.scaled_residual and granite.scaled_embeddings and granite.logits_scaling == 8.0


def test_mllama() -> None:
    vision = resolve_model("llama-3.2-11b-vision-instruct")
    assert vision.cross_attention_layers == (3, 8, 13, 18, 23, 28, 33, 38) and vision.num_self_attention_layers == 32
    assert vision.vision is not None and vision.vision.output_dim == 7680 and vision.vision.patches_per_tile == 1601
    text = read({**LLAMA, "model_type": "mllama_text_model", "cross_attention_layers": [1]})
    assert text.vision is None and text.family == "mllama" and weights(text)[0].shape == (328, 96)


@pytest.mark.parametrize(
    "rope", [{"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}}, {"rope_parameters": {"rope_theta": 1e6}}]
)
def test_old_and_new_rope_keys(rope: dict[str, object]) -> None:
    assert read(LLAMA, **rope) == read(LLAMA)
    assert read(LLAMA, model_type="phi3", partial_rotary_factor=0.75).partial_rotary_factor == 0.75
    assert read(LLAMA, model_type="phi3", rope_parameters={"partial_rotary_factor": 0.5}).partial_rotary_factor == 0.5


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        *[({"num_hidden_layers": bad}, "num_hidden_layers") for bad in (0, -1, 10**9, 10**400, 3.0, math.nan, True, "3", None, [3])],
        *[({key: None}, key) for key in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads")],
        *[({"hidden_size": value}, "hidden_size") for value in (97, 10**30, -96, math.inf, "96")],
        *[({"num_key_value_heads": value}, "num_key_value_heads") for value in (4, 7, 0, 2.0)],
        ({"head_dim": 0}, "head_dim"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"layer_types": ["full_attention"] * 2}, "layer_types"),
        ({"layer_types": ["full_attention", "full_atention", "full_attention"]}, "layer_types"),
        ({"model_type": "gemma2", "layer_types": "sliding_attention"}, "layer_types"),
        ({"model_type": "gemma2", "final_logit_softcapping": math.nan}, "final_logit_softcapping"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling"),
        ({"model_type": "phi3", "partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"model_type": "lama"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"model_type": "mllama"}, "text_config"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config.quant_method"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method"),
        ({"quantization_config": "int4"}, "quantization_config"),
    ],
)
def test_bad_values_name_the_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        read(LLAMA, **changes)
    assert caught.value.field == field and caught.value.exit_code == 2 and field in caught.value.message


@pytest.mark.parametrize(
    ("part", "changes", "field"),
    [
        ("text_config", {"cross_attention_layers": [3, 40]}, "text_config.cross_attention_layers"),
        ("text_config", {"cross_attention_layers": [3, 3]}, "text_config.cross_attention_layers"),
        ("text_config", {"cross_attention_layers": [True]}, "text_config.cross_attention_layers"),
        ("text_config", {"cross_attention_layers": 8}, "text_config.cross_attention_layers"),
        ("text_config", {"hidden_size": 4097}, "text_config.hidden_size"),
        ("vision_config", {"intermediate_layers_indices": [3, 99]}, "vision_config.intermediate_layers_indices"),
        ("vision_config", {"vision_output_dim": 1280}, "vision_config.vision_output_dim"),
        ("vision_config", {"image_size": [560, 560]}, "vision_config.image_size"),
        ("vision_config", {"patch_size": 500}, "vision_config.patch_size"),
        ("vision_config", {"max_num_tiles": 2}, "vision_config.max_num_tiles"),
        ("vision_config", {"num_attention_heads": 7}, "vision_config.hidden_size"),
    ],
)
def test_bad_vision_values_name_the_field(part: str, changes: dict[str, object], field: str) -> None:
    with pytest.raises(FieldError) as caught:
        read(MLLAMA, **{part: changes})
    assert caught.value.field == field


def test_numbers_too_long_to_print() -> None:
    with pytest.raises(FieldError, match="an integer of 16610 bits"):
        read(LLAMA, hidden_size=10**5000)


def test_messages_help() -> None:
    with pytest.raises(FieldError) as caught:
        read(LLAMA, model_type="lama")
    assert "llama" in caught.value.closest and all(family in caught.value.message for family in FAMILIES)
    with pytest.raises(FieldError) as caught:
        read({("num_hiden_layers" if key == "num_hidden_layers" else key): value for key, value in LLAMA.items()})
    assert caught.value.field == "num_hidden_layers" and caught.value.closest == ("num_hiden_layers",)
    with pytest.raises(FieldError) as caught:
        read({key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}, model_type="qwen2")
    assert "default where the key is absent" in caught.value.message


@pytest.mark.parametrize("quantization", [None, {}, {"quant_method": "bitsandbytes", "load_in_4bit": True}, {"load_in_8bit": True}])
def test_bitsandbytes_checkpoints_are_accepted(quantization: object) -> None:
    assert read(LLAMA, quantization_config=quantization) == read(LLAMA)


# Adapters


def test_counts_of_the_paper_on_qwen_math() -> None:
    """Rank 16 on q, k, v, o of Qwen2.5-Math-1.5B is 4,358,144; the paper's "about 18M" is rank 16 on all linears."""
    model = resolve_model("Qwen2.5-Math-1.5B")
    assert lora_parameters(model, Lora(r=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))) == 4_358_144
    assert lora_parameters(model, Lora(r=16)) == 18_464_768


@pytest.mark.parametrize(
    "targets", [("q_porj",), ("q_proj", "k_prj"), (), ("input_layernorm",), ("self_attn",), "q_proj", "(", ("",), ("all-linear",)]
)
def test_targets_that_cannot_be_adapted(targets: str | tuple[str, ...]) -> None:
    with pytest.raises(FieldError) as caught:
        lora_parameters(read(LLAMA), Lora(target_modules=targets))
    assert caught.value.field == "lora.target_modules"


def test_a_misspelt_target_lists_what_there_is() -> None:
    with pytest.raises(FieldError) as caught:
        lora_parameters(read(LLAMA), Lora(target_modules=("q_porj",)))
    assert caught.value.closest[0] == "q_proj" and "down_proj" in caught.value.message


def test_adapted_weights_carry_their_layers() -> None:
    found = adapted_weights(read(LLAMA), Lora(target_modules=("layers.1.self_attn.q_proj", "v_proj")))
    assert [(weight.module, weight.layers, weight.copies) for weight in found] == [("q_proj", (1,), 1), ("v_proj", (0, 1, 2), 3)]


@given(rank=st.integers(1, 64), more=st.integers(1, 64))
@settings(max_examples=25, database=None, deadline=None)
def test_adapters_grow_linearly_with_rank(rank: int, more: int) -> None:
    model = read(LLAMA)
    one = lora_parameters(model, Lora(r=1))
    assert lora_parameters(model, Lora(r=rank)) + lora_parameters(model, Lora(r=more)) == one * (rank + more)
