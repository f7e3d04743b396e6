"""Seconds of one pass over a model: arithmetic against the card's peak, bytes against its bandwidth, kernel launches against the processor.

Every rate is assumed, none is measured: `utilisation`, the launch time and the dequantisation rate are what facts about other people's runs
suggest, right within a factor of about 2 either way. A calibration run replaces them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log2

from llamamath.planner.architecture import Architecture
from llamamath.planner.device import Device
from llamamath.planner.job import Job, Lora
from llamamath.planner.memory.settings import WIDTHS
from llamamath.planner.memory.static import quantized_bytes
from llamamath.planner.parameters import Weight, adapted_weights, trainable_parameters, weights

UTILISATION = ((128, 0.10), (512, 0.20), (2048, 0.33), (8192, 0.475))
"""(tokens of a micro-batch, share of the peak rate that training reaches): 0.45-0.50 from 8k tokens, 0.33 at 2k, 0.10-0.20 below 512.
Assumed before a calibration run, from published runs of 1B to 8B models."""
LAUNCH_SECONDS_PER_LAYER = 1e-3
"""Eager kernel launches of one layer's forward: a decode step takes 20 to 40 ms where nothing else bounds it, at about 28 layers."""
DEQUANTISATION_SHARE = 0.45
"""Share of the memory bandwidth that bitsandbytes' dequantisation reaches."""
DEQUANTISED_BYTES = {"nf4": 4.5, "nf4-dq": 4.5, "int8": 5.0}
"""Bytes moved per weight and pass: the stored weight read (0.5 or 1), 2 written, 2 read by the product."""
DECODE_PRODUCT_SHARE = 0.5
"""Share of the peak rate of a decode step's products, beside the time to read the weights; reached only by hundreds of rows."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Peaks of a device. `link` is pinned host-to-device copying, None if unknown."""

    flops_per_second: float
    bandwidth_bytes_per_second: float
    link_bytes_per_second: float | None = None


def rates_of(device: Device) -> Rates | None:
    """The device's rates; None unless both arithmetic and bandwidth are known."""
    if device.bf16_flops_per_second is None or device.memory_bandwidth_bytes_per_second is None:
        return None
    return Rates(device.bf16_flops_per_second, device.memory_bandwidth_bytes_per_second, device.host_to_device_bytes_per_second)


def utilisation(num_tokens: float) -> float:
    """Share of the peak rate at `num_tokens` per micro-batch: UTILISATION, linear in log2(tokens) between its points, flat beyond."""
    low_tokens, low_share = UTILISATION[0]
    for tokens, share in UTILISATION:
        if num_tokens <= tokens:
            if tokens == low_tokens:
                return share
            return low_share + (share - low_share) * log2(num_tokens / low_tokens) / log2(tokens / low_tokens)
        low_tokens, low_share = tokens, share
    return low_share


@dataclass(frozen=True, slots=True)
class Work:
    """What one model under one job setting makes the device do, apart from batch and lengths. Counts are elements."""

    layers: int
    attention_layers: int
    query_size: int
    key_value_size: int
    hidden_size: int
    linear: int
    """Weights that each text token is multiplied with, the head apart."""
    vision_linear: int
    vision_tokens: int
    """Tokens of the image tower for one image."""
    adapters: int
    head: int
    quantized: int
    """Weights that must be dequantised, among `linear` and `vision_linear`."""
    dequantised_bytes: float
    stored_bytes: int
    """`linear` and the head as they lie in memory: what a decode step reads."""
    unquantized_bytes: int
    """The same in the load dtype: what an engine with its own copy of the model reads."""
    layer_bytes: int
    trainable: int
    trainable_width: int


@lru_cache(maxsize=1024)
def work_of(architecture: Architecture, lora: Lora | None, quantization: str, dtype: str, images: bool) -> Work:
    """The Work of a model. Without images the layers that attend to one are skipped, as in transformers' Mllama."""
    width = WIDTHS[dtype]
    crossing = frozenset() if images else frozenset(architecture.cross_attention_layers)

    def active(weight: Weight) -> int:
        """Copies of a weight that run."""
        return sum(layer not in crossing for layer in weight.layers) if weight.layers and weight.tower == "text" else weight.copies

    linears = [weight for weight in weights(architecture) if weight.role == "linear"]
    text = [weight for weight in linears if weight.tower == "text"]
    tower = [weight for weight in linears if weight.tower != "text"] if images else []
    linear = sum(weight.numel * active(weight) for weight in text)
    quantized = quantization != "none"
    stored = [quantized_bytes(w.numel, w.shape[0], quantization) if quantized else w.numel * width for w in text]
    head = architecture.vocab_size * architecture.hidden_size
    adapters = 0
    if lora is not None:
        adapted = (weight for weight in adapted_weights(architecture, lora) if weight.tower == "text")
        adapters = sum(active(weight) * lora.r * sum(weight.shape) for weight in adapted)
    vision_linear = sum(weight.numel * weight.copies for weight in tower)
    vision = architecture.vision
    return Work(
        layers=architecture.num_hidden_layers - len(crossing),
        attention_layers=architecture.num_self_attention_layers,
        query_size=architecture.query_size,
        key_value_size=architecture.key_value_size,
        hidden_size=architecture.hidden_size,
        linear=linear,
        vision_linear=vision_linear,
        vision_tokens=vision.max_num_tiles * vision.patches_per_tile if vision is not None and images else 0,
        adapters=adapters,
        head=head,
        quantized=linear + vision_linear if quantized else 0,
        dequantised_bytes=DEQUANTISED_BYTES.get(quantization, 0.0),
        stored_bytes=sum(size * active(weight) for size, weight in zip(stored, text, strict=True)) + head * width,
        unquantized_bytes=(linear + head) * width,
        layer_bytes=sum(size * weight.copies for size, weight in zip(stored, text, strict=True)),
        trainable=trainable_parameters(architecture, lora),
        trainable_width=WIDTHS[lora.dtype if lora else dtype],
    )


def work_of_job(job: Job, architecture: Architecture) -> Work:
    """The Work of a job."""
    return work_of(architecture, job.lora, job.quantization, job.dtype, job.num_images > 0)


@dataclass(frozen=True, slots=True)
class Pass:
    """Seconds of the four parts of one micro-batch."""

    forward: float
    head_forward: float
    backward: float
    """Recomputation included."""
    head_backward: float


def micro_batch(job: Job, work: Work, rates: Rates, *, rows: int, length: float, scored: float, whole_square: bool) -> Pass:
    """Seconds of a forward and a backward over `rows` sequences of `length` tokens, `scored` of which in all reach the head.

    FLOP, per token: forward 2N + 2LQT (N linear weights, L layers, Q query width, T length; causal, so half of the square; twice that
    with a mask, which kernels do not skip). Backward with a frozen base 2N + 5LQT, with a trained one 4N; recomputation one forward
    more: 6N + 9LHT in all where Q = H. Adapters: 2n forward, 4n backward. Head, per scored token: 2VH forward, 2VH backward (4VH
    chunked, which makes its logits again), 2VH more if it is trained. Time = FLOP / (peak * utilisation) + dequantised bytes per
    pass / (0.45 * bandwidth), never less than the launches of the layers it runs. Left out: norms, rotary, loss statistics, sliding
    windows, attention to images.
    """
    tokens = rows * length
    share = utilisation(tokens) * rates.flops_per_second
    attention = 2.0 * work.attention_layers * work.query_size * length * tokens * (2 if whole_square else 1)
    images = 2.0 * work.vision_linear * work.vision_tokens * rows * job.num_images
    forward_flop = 2.0 * (work.linear + work.adapters) * tokens + attention + images
    trained = 0.0 if job.lora is not None else 2.0 * work.linear * tokens + images
    backward_flop = (2.0 * work.linear + 4.0 * work.adapters) * tokens + 2.5 * attention + images + trained
    dequantise = work.quantized * work.dequantised_bytes / (DEQUANTISATION_SHARE * rates.bandwidth_bytes_per_second)
    launches = work.layers * LAUNCH_SECONDS_PER_LAYER
    forward = max(forward_flop / share + dequantise, launches)
    backward = max(backward_flop / share + dequantise, 2 * launches) + (forward if job.gradient_checkpointing else 0.0)
    head = 2.0 * work.head * scored / share
    head_backward = head * ((1 if job.loss == "full" else 2) + (job.lora is None))
    return Pass(forward, head, backward, head_backward)


def decode_seconds(job: Job, work: Work, rates: Rates, *, rows: int, prompt: float, completion: int, repeated: bool) -> float:
    """Seconds to decode `completion` tokens for `rows` rows: sum over t of max((weights + traffic * cache(t)) / bandwidth, floor).

    cache(t) = rows * (prompt + t) * 2 * L * KV * width. traffic: with transformers' dynamic cache 3 (torch.cat reads and writes it,
    attention reads it), and with `repeated` keys and values 1 + 2 * heads / kv_heads instead of that last read; vLLM 1. floor: eager
    launches, products at half of the peak, weights streamed from the host. vLLM has neither launches nor quantised weights.
    Left out: sampling, and that rows may all end early.
    """
    eager = job.rollout.engine == "transformers"
    per_token = rows * 2 * work.attention_layers * work.key_value_size * WIDTHS[job.dtype]
    last_read = 1 + 2 * work.query_size / work.key_value_size if repeated else 1
    slope = per_token * (2 + last_read if eager else 1) / rates.bandwidth_bytes_per_second
    weight_bytes = work.stored_bytes if eager else work.unquantized_bytes
    start = weight_bytes / rates.bandwidth_bytes_per_second + slope * prompt
    product = 2.0 * (work.linear + work.adapters + work.head) * rows / (DECODE_PRODUCT_SHARE * rates.flops_per_second)
    floor = max(product, work.layers * LAUNCH_SECONDS_PER_LAYER if eager else 0.0, streamed_seconds(job, work, rates))
    below = min(max((floor - start) / slope, 0.0), float(completion))  # steps bounded by the floor
    above = completion - below
    return below * floor + above * (start + slope * (below + completion) / 2)


def streamed_seconds(job: Job, work: Work, rates: Rates) -> float:
    """Seconds to bring the offloaded weights in once: (1 - 2/L) of the layers over the link; 0 without offload."""
    if "weights" not in job.offload or rates.link_bytes_per_second is None:
        return 0.0
    return work.layer_bytes * (1 - 2 / max(2, work.layers)) / rates.link_bytes_per_second


def optimizer_seconds(job: Job, work: Work, rates: Rates) -> float:
    """One optimizer step: parameters read and written, gradients read, two states read and written, over the bandwidth.

    States are 1 byte per element in 8-bit optimizers, 4 in paged 32-bit ones, else the parameter's width; none for sgd and adafactor.
    Offloaded state crosses the link twice. Left out: launches, and paging, which happens only when the card is full.
    """
    width = work.trainable_width
    state = 1 if "8bit" in job.optim else 4 if job.optim.startswith("paged") else 0 if job.optim in ("sgd", "adafactor") else width
    seconds = work.trainable * (3 * width + 4 * state) / rates.bandwidth_bytes_per_second
    if "optimizer" in job.offload and rates.link_bytes_per_second is not None:
        seconds += 4 * state * work.trainable / rates.link_bytes_per_second
    return seconds
