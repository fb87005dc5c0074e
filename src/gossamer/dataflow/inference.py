"""What running a compressed model takes on a device: memory, latency and energy of one step, from shapes alone.

A step is one token of a model that generates, one sequence alone, with `context` tokens before it; of other models
one example. These are estimates at the device's peaks, lower bounds of what a runtime reaches:

- *peak memory*: the weights as stored + the keys and values of the context at 16 bits + activations of reading the
  context at once, at 16 bits: of the tower that holds most, three states as wide as it and one as wide as its widest
  layer for every position; the logits of one position in float32;
- *latency*: of every layer the longer of reading its weights as stored and of computing with them in 16-bit floats,
  and the same for attention over the cache;
- *energy*: by the byte read and the operation computed, or the device's power for that latency.

Tables that are only looked up cost memory, no time; a token of a model with experts reads the share that is active.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gossamer.core.device import Device
from gossamer.dataflow.job import Calibration, vectors_of
from gossamer.models.hierarchy import Hierarchy, Layer
from gossamer.models.work import active_share, work_of

if TYPE_CHECKING:
    from gossamer.models.open import Opened

CONTEXT = 2048
"""Tokens of context where none are stated and the model has so many positions."""


@dataclass(frozen=True)
class Inference:
    """One step. `vectors`: layer path → input vectors that the layer multiplies; `active`: share of experts in use.

    `cache_bytes` are the keys and values of `context` tokens; `attention` the operations on them, a multiply-accumulate
    counting as two; `activation_bytes` as above.
    """

    context: int
    generates: bool
    vectors: Mapping[str, int]
    active: float
    cache_bytes: int
    activation_bytes: int
    attention: float

    @classmethod
    def of(cls, opened: "Opened", context: int | None = None) -> "Inference":
        """The step of a model after `context` tokens, by default `CONTEXT` or as many as it has positions."""
        positions = getattr(opened.config.get_text_config(decoder=True), "max_position_embeddings", None) or CONTEXT
        context = min(CONTEXT, positions) if context is None else context
        generates = bool(getattr(opened.model, "can_generate", bool)())
        each = vectors_of(opened, work_of(opened.hierarchy, opened.config), Calibration(1, context))
        read = {"language": 1, "head": 1} if generates else each
        default = 0 if generates else each["language"]
        vectors = {
            layer.path: read.get(modality.name, default)
            for modality in opened.hierarchy.modalities
            for layer in (*modality.layers, *(layer for block in modality.blocks for layer in block.layers))
        }
        cache, attention = _cache(opened.config, context) if generates else (0, 0.0)
        activations = _activation_bytes(opened.hierarchy, {**each, "language": context})
        share = active_share(opened.config)
        return cls(context, generates, vectors, share, cache, activations, attention)

    def peak_bytes(self, weight_bytes: float) -> float:
        """Peak memory with weights of so many bytes."""
        return weight_bytes + self.cache_bytes + self.activation_bytes

    def costs(self, device: Device, layer: Layer, stored: int) -> tuple[float, ...]:
        """What one layer takes whose weight is `stored` bytes: milliseconds, then millijoules if the device tells."""
        vectors = self.vectors[layer.path]
        if layer.kind == "embedding" or not vectors:
            return _costs(device, 0.0, 0.0)
        share = self.active if layer.kind == "expert" else 1.0
        return _costs(device, share * stored, 2.0 * share * vectors * layer.rows * layer.columns)

    def cache_costs(self, device: Device) -> tuple[float, ...]:
        """What attention over the cache takes, likewise."""
        return _costs(device, self.cache_bytes, self.attention)

    def assumptions(self, device: Device | None) -> str:
        """What the figures are of, in words."""
        what = f"a token after {self.context} tokens of context" if self.generates else "one example"
        return (
            f"{what}, one sequence alone, weights kept and read as stored, keys, values and activations at 16 bits"
            + (f", at the peak rates of {device.name}, which real runtimes do not reach" if device is not None else "")
        )


def _costs(device: Device, read: float, operations: float) -> tuple[float, ...]:
    energy = device.joules(read, operations, "float16")
    latency = device.seconds(read, operations, "float16")
    return (1e3 * latency,) if energy is None else (1e3 * latency, 1e3 * energy)


def _activation_bytes(hierarchy: Hierarchy, vectors: Mapping[str, int]) -> int:
    most = 0
    for modality in hierarchy.modalities:
        inside = [layer for block in modality.blocks for layer in block.layers if layer.kind != "embedding"]
        width = max((min(layer.rows, layer.columns) for layer in inside), default=0)
        widest = max((max(layer.rows, layer.columns) for layer in inside), default=0)
        most = max(most, 2 * vectors.get(modality.name, vectors["language"]) * (3 * width + widest))
    heads = [layer.rows for part in hierarchy.modalities if part.name == "head" for layer in part.layers]
    return most + 4 * max(heads, default=0)


def _cache(config: Any, context: int) -> tuple[int, float]:
    """Bytes of keys and values at 16 bits, and operations of attention over them; none where nothing attends."""
    text = config.get_text_config(decoder=True)
    heads = _first(text, "decoder_attention_heads", "num_attention_heads")
    if not heads:
        return 0, 0.0
    width = _first(text, "head_dim") or _first(text, "hidden_size", "d_model") // heads
    layers = _first(text, "decoder_layers", "num_hidden_layers")
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
    window = getattr(text, "sliding_window", None) or context
    every = window if getattr(text, "layer_types", None) is None else context
    spans = {"full_attention": min(context, every), "sliding_attention": min(context, window)}
    tokens = sum(spans.get(kind, 0) for kind in kinds[:layers])
    kept = _first(text, "num_key_value_heads") or heads
    return 2 * 2 * tokens * kept * width, 4.0 * tokens * heads * width


def _first(config: Any, *names: str) -> int:
    return next((int(value) for name in names if (value := getattr(config, name, None))), 0)
