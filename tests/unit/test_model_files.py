"""Configurations from files, checkpoints beside them, the hub (a loopback server stands in for it), and garbage."""

from __future__ import annotations

import http.server
import json
import math
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamamath.errors import LlamamathError, UnknownNameError, UsageError
from llamamath.planner.architecture import FAMILIES, Architecture
from llamamath.planner.job import Lora
from llamamath.planner.model_files.config_file import architecture_from_config, load_config, resolve_model
from llamamath.planner.parameters import count_parameters, lora_parameters, weights

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


# Files


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"model_type": "llama", "hid',
        b"[1, 2]",
        b"null",
        b"3",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"a": ' * 5000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=["empty", "truncated", "list", "null", "number", "binary", "deep-list", "deep-object", "long-number"],
)
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    for path in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UsageError) as caught:
            load_config(path)
        assert "config.json" in caught.value.message


def test_missing_files(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere.json"), str(tmp_path / "nowhere") + "/", "./no-such-directory", str(tmp_path)):
        with pytest.raises(UsageError):
            resolve_model(name)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="LoRA adapter"):
        resolve_model(str(tmp_path))


def write_model(directory: Path, config: Mapping[str, object], tensors: Mapping[str, tuple[int, ...]] | None = None, cut: int = 0) -> Path:
    """A checkpoint of zeros that are not stored: a header, and a file made as long as the header says by seeking."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8-sig")
    if tensors is not None:
        header, end = {}, 0
        for name, shape in tensors.items():
            size = 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
            end += size
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        with (directory / "model.safetensors").open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + end - cut)
    return directory


def tensors_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Names and shapes as in a checkpoint."""
    return {weight.name.replace("{layer}", str(index)): weight.shape for weight in weights(architecture) for index in weight.layers or (0,)}


def test_local_directory_and_file(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", LLAMA, tensors_of(read(LLAMA)))
    assert count_parameters(resolve_model(str(model))) == count_parameters(read(LLAMA))
    assert resolve_model(str(model / "config.json")).name == str(model / "config.json")


def test_a_config_that_lies_about_its_layers(tmp_path: Path) -> None:
    honest = tensors_of(read(LLAMA))
    with pytest.raises(UsageError, match="num_hidden_layers 2, the checkpoint holds 3"):
        resolve_model(str(write_model(tmp_path / "fewer", {**LLAMA, "num_hidden_layers": 2}, honest)))
    with pytest.raises(UsageError, match="parameters, the checkpoint holds"):
        resolve_model(str(write_model(tmp_path / "thinner", {**LLAMA, "intermediate_size": 80}, honest)))
    gap = {name: shape for name, shape in honest.items() if ".layers.1." not in name}
    with pytest.raises(UsageError, match="lacks layer 1"):
        resolve_model(str(write_model(tmp_path / "gap", LLAMA, gap)))
    with pytest.raises(UsageError, match="cut off"):
        resolve_model(str(write_model(tmp_path / "cut", LLAMA, honest, cut=100)))


def test_tied_heads_may_be_stored_or_not(tmp_path: Path) -> None:
    tied = {**LLAMA, "tie_word_embeddings": True}
    both = tensors_of(read(LLAMA))
    assert resolve_model(str(write_model(tmp_path / "stored", tied, both))).tie_word_embeddings
    assert resolve_model(str(write_model(tmp_path / "absent", tied, {k: v for k, v in both.items() if k != "lm_head.weight"})))


def test_index_file_is_compared(tmp_path: Path) -> None:
    model, names = write_model(tmp_path / "model", LLAMA), dict.fromkeys(tensors_of(read(LLAMA)), "model-00001-of-00001.safetensors")
    index = model / "model.safetensors.index.json"
    good = 2 * count_parameters(read(LLAMA))
    for total in (good, 2 * good, None):
        index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": names}))
        assert resolve_model(str(model)).num_hidden_layers == 3
    index.write_text(json.dumps({"metadata": {"total_size": 3 * good}, "weight_map": names}))
    with pytest.raises(UsageError, match="config.json describes"):
        resolve_model(str(model))
    for broken in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(broken)
        with pytest.raises(UsageError):
            resolve_model(str(model))


def test_weights_that_say_nothing_are_not_judged(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", LLAMA)
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (model / "adapter_model.safetensors").write_bytes(b"anything")
    assert resolve_model(str(model)).hidden_size == 96
    (model / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UsageError, match="not a complete safetensors file"):
        resolve_model(str(model))


# The hub


def test_cached_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tuned"
    for commit, layers in (("aaa", 2), ("bbb", 3)):
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": layers}))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("aaa")
    assert resolve_model("someone/tuned").num_hidden_layers == 2


class Hub(http.server.BaseHTTPRequestHandler):
    """A loopback hub. Paths decide the answer; the Authorization headers it saw are kept."""

    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers.get("Authorization")))
        port = self.headers["Host"].rpartition(":")[2]
        redirects = {
            "/org/same/resolve/main/config.json": "/moved",
            "/org/other/resolve/main/config.json": f"http://localhost:{port}/moved",
        }
        if self.path in redirects:
            self.send_response(307)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
            return
        status = 401 if "gated" in self.path else 404 if "missing" in self.path else 500 if "broken" in self.path else 200
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(LLAMA).encode() if "html" not in self.path else b"<html>")

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """HF_ENDPOINT points at a server of our own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Hub.seen.clear()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}/")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_hub_model_is_fetched_and_the_token_stays_with_its_host() -> None:
    assert resolve_model("org/plain").hidden_size == 96
    assert resolve_model("org/same").hidden_size == 96
    assert resolve_model("org/other").hidden_size == 96
    tokens = [token for _, token in Hub.seen]
    assert tokens == ["Bearer secret", "Bearer secret", "Bearer secret", "Bearer secret", None]


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(("name", "hint"), [("org/gated", "gated"), ("org/missing", "no such model"), ("org/broken", "500")])
def test_hub_refusals_are_explained(name: str, hint: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        resolve_model(name)
    assert hint in caught.value.hint


@pytest.mark.usefixtures("hub")
def test_hub_answers_that_are_no_config() -> None:
    with pytest.raises(UsageError, match="config.json of org/html"):
        resolve_model("org/html")


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "*")
    for endpoint, hint in (
        ("http://127.0.0.1:9", "could not be reached"),
        ("ftp://127.0.0.1", "HF_ENDPOINT"),
        ("http://[", "could not be reached"),
    ):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(UnknownNameError) as caught:
            resolve_model("org/name")
        assert hint in caught.value.hint


# Garbage

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from([10**9, 10**400, -1, 0, 1, 2, 8])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8
)
KEYS = st.sampled_from(
    [
        *LLAMA,
        *("head_dim", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers", "rope_scaling", "rope_parameters"),
        *("quantization_config", "cross_attention_layers", "attention_bias", "mlp_bias", "tie_word_embeddings", "logits_scaling"),
        *(
            "partial_rotary_factor",
            "image_size",
            "intermediate_layers_indices",
            "supported_aspect_ratios",
            "vision_output_dim",
            "max_num_tiles",
        ),
    ]
)
TYPES = st.sampled_from([*FAMILIES, "mllama_text_model"])


def survive(config: Mapping[str, object]) -> None:
    """Either it reads, and then everything can be counted, or it is refused with an error for people."""
    try:
        architecture = architecture_from_config(config, "garbage")
    except LlamamathError as error:
        assert error.exit_code == 2 and len(error.message) < 2000
        return
    assert count_parameters(architecture) > 0 and lora_parameters(architecture, Lora()) > 0


@given(config=st.dictionaries(st.text(max_size=8) | KEYS, JSON, max_size=8))
@settings(max_examples=150, database=None, deadline=None)
def test_garbage_is_refused(config: dict[str, object]) -> None:
    survive(config)


@given(family=TYPES, changes=st.dictionaries(KEYS, JSON, max_size=3))
@settings(max_examples=300, database=None, deadline=None)
def test_almost_right_configurations_are_refused_or_read(family: str, changes: dict[str, object]) -> None:
    if family == "mllama":
        survive({**MLLAMA, "text_config": changes, "vision_config": {}})
        survive({**MLLAMA, "text_config": {}, "vision_config": changes})
    survive({**LLAMA, "model_type": family, **changes})


@given(data=st.binary(max_size=64))
@settings(max_examples=100, database=None, deadline=None)
def test_garbage_bytes_are_refused(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("garbage")
    (directory / "config.json").write_bytes(data)
    (directory / "model.safetensors").write_bytes(data)
    with pytest.raises(LlamamathError):
        resolve_model(str(directory))
