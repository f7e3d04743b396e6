"""Token lengths from a file: whole numbers separated by blanks or lines, a JSON list of them, or JSON lines that hold one each."""

from __future__ import annotations

import json
from pathlib import Path

from llamamath.errors import FieldError, UsageError, shorten
from llamamath.planner.job_files.yaml_json import read_text
from llamamath.planner.throughput.token_lengths import TokenLengths, measure

KEYS = ("num_tokens", "tokens", "length", "token_length", "prompt_tokens", "input_ids")
"""Keys of a JSON line that are looked at, the first that is there; a list (such as `input_ids`) counts as its length."""
MAX_FILE_BYTES = 256 * 2**20
MAX_TOKENS = 2**24


def read_lengths(path: str) -> TokenLengths:
    """The lengths in `path` (`-`: standard input) as percentiles. Raises UsageError naming the line that is none."""
    text = read_text(Path(path), max_bytes=MAX_FILE_BYTES)
    if text.lstrip().startswith("["):
        items = _json(text, path)
        values = items if isinstance(items, list) else [items]
        found = [_length(value, f"{path}: item {number}") for number, value in enumerate(values, 1)]
    else:
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            where = f"{path}: line {number}"
            if line.lstrip().startswith("{"):
                found.append(_length(_json(line, where), where))
            else:
                found += [_length(_json(word, where), where) for word in line.replace(",", " ").split()]
    if not found:
        raise UsageError(f"{path}: no token lengths in it", "one whole number per line, or JSON lines with a key num_tokens")
    return measure(found)


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: neither a number nor JSON: {shorten(text, 60)!r}") from error


def _length(value: object, where: str) -> int:
    if isinstance(value, dict):
        key = next((key for key in KEYS if key in value), None)
        if key is None:
            raise UsageError(f"{where}: none of the keys {', '.join(KEYS)} in it")
        value, where = value[key], f"{where}: {key}"
    if isinstance(value, list):
        value = len(value)
    if type(value) is int and 1 <= value <= MAX_TOKENS:
        return value
    raise FieldError(where, value, f"a number of tokens from 1 to {MAX_TOKENS:,}")
