"""Sizes as linear forms in the quantities a job can vary, so that one walk through a model serves every batch and length.

A size is `constant + a*tokens + b*mask_elements + ...` with non-negative integer coefficients. It is packed into one Python integer,
64 bits per monomial, so that adding two sizes is one integer addition and scaling one is one multiplication: the symbols below are
plain integers, and `2 * hidden * TOKENS` is the size of a bf16 hidden state. Products of two symbols do not exist; each product
that occurs in a model (tokens squared in a mask, say) is a monomial of its own.
"""

from __future__ import annotations

from operator import mul

_BITS = 64
_MASK = (1 << _BITS) - 1

MONOMIALS = (
    "constant",
    "tokens",  # rows * length
    "rows",  # sequences in the batch
    "length",  # tokens of one sequence
    "flash_tokens",  # rows * length rounded up to 128: flash attention's backward accumulators
    "mask_elements",  # rows * length * length: boolean masks, eager attention scores
    "bias_elements",  # rows * length * length rounded up to 16: additive attention bias
    "square",  # length * length: a mask shared by all rows
    "scored_tokens",  # positions whose next token enters the loss
    "logit_tile",  # elements of one tile of the chunked loss: min(scored, 4096) * 32768
    "cached_tokens",  # rows * cached length: the KV cache
    "vision_tokens",  # rows * images * tiles * patches (as the tower sees them)
    "vision_pairs",  # rows * text length * vision tokens of a row: cross-attention masks and scores
    "vision_bias",  # the same with the vision tokens rounded up to 16
    "vision_square",  # rows * images * (tiles * padded patches) ** 2: the tower's attention mask
)

CONSTANT, TOKENS, ROWS, LENGTH, FLASH_TOKENS, MASK, BIAS, SQUARE, SCORED, TILE, CACHED, VISION, VISION_PAIRS, VISION_BIAS, VISION_SQUARE = (
    1 << (_BITS * index) for index in range(len(MONOMIALS))
)

Size = int


def coefficients(size: Size) -> tuple[int, ...]:
    """The coefficients of `size`, in the order of MONOMIALS, without trailing zeros."""
    unpacked = []
    while size:
        unpacked.append(size & _MASK)
        size >>= _BITS
    return tuple(unpacked)


def evaluate(terms: tuple[int, ...], values: tuple[int, ...]) -> int:
    """Bytes of a linear form (`coefficients(size)`) at the given values of the MONOMIALS."""
    return sum(map(mul, terms, values))


def dominates(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    """True when every coefficient of `left` is at least that of `right`: at no values can `right` be larger."""
    return len(left) >= len(right) and all(a >= b for a, b in zip(left, right, strict=False))
