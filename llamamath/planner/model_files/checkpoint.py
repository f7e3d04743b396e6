"""Does a config.json tell the truth about the weights beside it? Reads safetensors headers and index files, never the weights.

Formats: a `model.safetensors.index.json` has `metadata.total_size` (bytes) and `weight_map` (tensor -> file); a safetensors file starts
with the header's length (8 bytes, little endian) and the header, JSON with dtype, shape and data_offsets of each tensor
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from llamamath.errors import UsageError
from llamamath.planner.architecture import Architecture
from llamamath.planner.parameters import count_parameters

INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000
"""The format's own limit for a header."""
TOLERANCE = 0.02
"""Room for a value head, stored rotary tables and the like, as a share of all parameters."""

_LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})\.")
_FLOATS = {"F64", "F32", "F16", "BF16"}
_GIT_LFS = b"version https://git-lfs"
_HINT = "config.json belongs to another model or was edited: take it from where the weights came from"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """What a checkpoint holds. None where its files do not say."""

    names: tuple[str, ...]
    num_parameters: int | None = None
    total_bytes: int | None = None


def check_checkpoint(directory: Path, architecture: Architecture, quantized: bool = False) -> None:
    """Raise UsageError if the checkpoint in `directory` has other layers or another number of parameters than `architecture`.

    Without weights in the directory (or with Git LFS pointers only) there is nothing to check. `quantized`: the stored tensors are
    packed, so only the layers are compared.
    """
    contents = _contents(directory)
    if contents is None:
        return
    _check_layers(directory, architecture, contents.names)
    if quantized:
        return
    head = architecture.vocab_size * architecture.hidden_size
    total = count_parameters(architecture)
    possible = (total, total + head if architecture.tie_word_embeddings else total - head)  # a tied head stored, or no head at all
    if contents.num_parameters is not None:
        if not any(_close(contents.num_parameters, count) for count in possible):
            message = f"{directory}: config.json describes {total:,} parameters, the checkpoint holds {contents.num_parameters:,}"
            raise UsageError(message, _HINT)
    elif contents.total_bytes is not None and not any(_close(contents.total_bytes, size * count) for size in (2, 4) for count in possible):
        message = f"{directory}: config.json describes {total:,} parameters ({2 * total:,} bytes in 16 bits)"
        raise UsageError(f"{message}, {INDEX} says {contents.total_bytes:,} bytes", _HINT)


def _check_layers(directory: Path, architecture: Architecture, names: Iterable[str]) -> None:
    found = {int(match.group(1)) for name in names if "vision" not in name and (match := _LAYER.search(name))}
    if not found:
        return
    described = architecture.num_hidden_layers
    if max(found) + 1 != described:
        message = f"{directory}: config.json describes num_hidden_layers {described}, the checkpoint holds {max(found) + 1} layers"
        raise UsageError(message, _HINT)
    if len(found) != described:
        absent = sorted(set(range(described)) - found)
        raise UsageError(f"{directory}: the checkpoint lacks layer {absent[0]} of {described}", "download the missing shards")


def _close(found: int, expected: int) -> bool:
    return abs(found - expected) <= TOLERANCE * expected


def _contents(directory: Path) -> _Contents | None:
    try:
        index = directory / INDEX
        if index.is_file():
            return _read_index(index)
        files = sorted(file for file in directory.glob("model*.safetensors") if file.is_file())
        headers = [header for file in files if (header := _read_header(file)) is not None]
    except OSError as error:
        raise UsageError(f"{directory}: cannot be read ({error})", "check the permissions of the checkpoint") from error
    if not files or len(headers) != len(files):
        return None
    return _from_headers(headers)


def _read_index(index: Path) -> _Contents:
    document = _json_object(index.read_bytes(), index)
    weight_map, metadata = document.get("weight_map"), document.get("metadata")
    if not isinstance(weight_map, dict):
        raise UsageError(f"{index}: has no weight_map object", "download it again")
    files = {value for value in weight_map.values() if isinstance(value, str) and not set(value) & set("/\\\0")}
    shards = [index.parent / file for file in sorted(files)]
    headers = [header for shard in shards if shard.is_file() and (header := _read_header(shard)) is not None]
    if headers and len(headers) == len(shards):
        return _from_headers(headers)
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if not isinstance(total, int | float) or not 0 < total < 2**60:
        total = None
    return _Contents(names=tuple(weight_map), total_bytes=None if total is None else int(total))


def _read_header(file: Path) -> dict[str, object] | None:
    """The header of a safetensors file; None for a Git LFS pointer, which stands for a file that was not downloaded."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(len(_GIT_LFS))
        if start == _GIT_LFS:
            return None
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
            raise UsageError(f"{file}: not a complete safetensors file", "download it again")
        stream.seek(8)
        header = _json_object(stream.read(length), file)
    end = 0
    for tensor in header.values():
        offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
        if isinstance(offsets, list) and len(offsets) == 2 and isinstance(offsets[1], int):
            end = max(end, offsets[1])
    if 8 + length + end > size:
        raise UsageError(f"{file}: cut off, {size:,} of {8 + length + end:,} bytes", "download it again")
    return header


def _from_headers(headers: Iterable[Mapping[str, object]]) -> _Contents:
    names: list[str] = []
    total, packed = 0, False
    for header in headers:
        for name, tensor in header.items():
            shape = tensor.get("shape") if isinstance(tensor, dict) else None
            if not isinstance(tensor, dict) or not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
                continue  # __metadata__, or not a tensor
            names.append(name)
            if tensor.get("dtype") in _FLOATS:
                total += 0 if "inv_freq" in name else prod(shape)
            else:
                packed = True
    return _Contents(names=tuple(names), num_parameters=None if packed or not names else total)


def _json_object(data: bytes, file: Path) -> dict[str, object]:
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: not readable ({type(error).__name__})", "is the file complete? download it again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{file}: holds a JSON {type(value).__name__}, not an object", "download it again")
    return value
