"""From transformers' modules to a program: which steps on which weights compute what a decoder's blocks compute.

Nothing of a model's code is copied: shapes, norms, activations and scalings are read from its modules. Blocks are
served if their class is one of `BLOCKS`, whose arithmetic the tests compare with transformers'; pruned widths, dropped
blocks, mixed grids and zero weights need nothing of their own, as every block has steps of its own.
"""

import ctypes
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gossamer.core.errors import ModelError
from gossamer.engine.native import abi
from gossamer.engine.native.abi import Activation, Grid, OpKind, Prologue
from gossamer.engine.native.weights import Weight, float_weight, packed_weight
from gossamer.models.gguf_codes import Codes
from gossamer.models.inputs import InputGrid, input_grid, stored_input_grids
from gossamer.models.loading import unpack
from gossamer.models.low_rank import LowRank
from gossamer.models.number_formats import Format
from gossamer.models.packed import brief_dtype
from gossamer.models.stored_codes import codes_of_layer

BLOCKS = (
    "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "SmolLM3DecoderLayer",
    "GemmaDecoderLayer", "Gemma2DecoderLayer", "Gemma3DecoderLayer", "Qwen2VLDecoderLayer", "Qwen2_5_VLDecoderLayer",
    "MixtralDecoderLayer", "Qwen2MoeDecoderLayer", "Qwen3MoeDecoderLayer",
)  # fmt: skip
ACTIVATIONS = {
    "SiLUActivation": Activation.SILU, "SiLU": Activation.SILU, "GELUActivation": Activation.GELU,
    "GELUTanh": Activation.GELU_TANH, "NewGELUActivation": Activation.GELU_TANH, "ReLU": Activation.RELU,
    "ReLUSquaredActivation": Activation.RELU2, "QuickGELUActivation": Activation.QUICK_GELU,
}  # fmt: skip
GRIDS: dict[Format, Grid] = {"int": Grid.WHOLE, "fp8": Grid.E4M3, "mxfp4": Grid.MXFP4, "nvfp4": Grid.NVFP4}
ROPES = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose angle depends on nothing but the position."""
FUSIONS = frozenset({"norm", "qkv", "gate_up"})
"""What may run as one step: a norm with the matrices that read it, query with key and value, gate with up."""


class NotServedError(ModelError):
    """The native engine does not run this model; torch does."""


HIDDEN, QUERY, KEY, VALUE, ATTENDED, GATE, UP, ASIDE, LOGITS, LAST, RANKS, ROUTES, CHOSEN, SENT, MADE = range(15)
"""The buffers, by number: the hidden state first, those of a block, the last states and their logits, what passes
between the factors of a low-rank matrix, and of a mixture the router's logits, the experts that it chose, what is sent
to one of them and what that makes of it."""


@dataclass(frozen=True, eq=False)
class Program:
    """A decoder ready to run: arrays of steps. `body` goes from hidden states to hidden states, `from_tokens` does so
    from tokens, `head` from the last ones, of the rows that matter, to logits; `whole` from tokens to logits.

    `widths` are the buffers' columns, `kv_heads` and `head_dim` the cache's of each layer, `tables` the kinds of rotary
    embedding, of `rotary`. Logits are bent by `softcap` if above 0. `shares`: of tokens, that read a weight
    of an expert.
    """

    from_tokens: Any
    body: Any
    head: Any
    whole: Any
    widths: dict[int, int]
    kv_heads: list[int]
    head_dim: list[int]
    tables: list[str | None]
    rotary: Any
    softcap: float
    vocabulary: int
    weights: Mapping[str, Weight]
    shares: Mapping[str, float]
    embedding: str
    held: list[Any] = field(repr=False)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, each counted once."""
        return sum(weight.bytes for weight in {id(weight): weight for weight in self.weights.values()}.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights that are read for each token: all but an embedding that is not the head too, and of experts
        as many as the router chooses."""
        looked_up = self.weights[self.embedding]
        shared = any(weight is looked_up for name, weight in self.weights.items() if name != self.embedding)
        unread = sum((1 - share) * self.weights[name].bytes for name, share in self.shares.items())
        return self.weight_bytes - (0 if shared else looked_up.bytes) - round(unread)


def lower(
    model: nn.Module,
    codes: Mapping[str, Codes] | None = None,
    dtype: torch.dtype | None = None,
    fusions: frozenset[str] = FUSIONS,
    known: Mapping[str, Weight] | None = None,
    low_ranks: Mapping[str, LowRank] | None = None,
) -> Program:
    """The program of a model's text decoder, which may be as it is stored (see `open_packed`).

    `codes` are weights that stay on their grids, by parameter name (of experts, as `stored_codes.stacked_codes` names
    them), as those do that the model holds itself; all others are kept as `dtype`, by default as the 16-bit type that
    holds them best. `known` are weights of another program on the same modules, which are shared. `low_ranks` are
    matrices beside the weights, by module name: their factors run as two more steps. Raises `NotServedError` for a
    decoder that the native engine does not run, with the reason.
    """
    return _Lowering(model, codes or {}, dtype, fusions, known or {}, low_ranks or {}).program()


class _Lowering:
    def __init__(
        self,
        model: nn.Module,
        codes: Mapping[str, Codes],
        dtype: torch.dtype | None,
        fusions: frozenset[str],
        known: Mapping[str, Weight],
        low_ranks: Mapping[str, LowRank],
    ) -> None:
        self._model: Any = model
        self._decoder = decoder_of(model)
        self._names = {id(module): f"{name}.weight" for name, module in model.named_modules()}
        self._codes, self._dtype, self._fusions, self._low_ranks = codes, dtype, fusions, low_ranks
        self._weights: dict[str, Weight] = dict(known)
        self._tensors: dict[int, Weight] = {}
        self._packed_before: list[tuple[Codes, Weight]] = []
        self._shares: dict[str, float] = {}
        self._held: list[Any] = []
        self._widths: dict[int, int] = {}
        self._tables: list[str | None] = []

    def program(self) -> Program:
        decoder = self._decoder
        head = self._model.get_output_embeddings()
        if head is None:
            raise NotServedError(f"{type(self._model).__name__} has no language head that the native engine could run")
        text = self._model.config.get_text_config(decoder=True)
        embedding = decoder.embed_tokens
        scale = float(getattr(embedding, "scalar_embed_scale", 1.0))
        width = embedding.embedding_dim
        embed = abi.Op(kind=OpKind.EMBED, out=HIDDEN, count=1, scale=scale, width=width)
        embed.matrices[0] = self._weight(embedding).struct
        self._use(HIDDEN, width)
        body = [op for number, block in enumerate(decoder.layers) for op in self._block(number, block)]
        self._use(LAST, width)
        last = list(self._linear(LAST, decoder.norm, [(head, LOGITS)]))
        attentions = [block.self_attn for block in decoder.layers]
        return Program(
            from_tokens=_array([embed, *body]),
            body=_array(body),
            head=_array(last),
            whole=_array([embed, *body, *self._linear(HIDDEN, decoder.norm, [(head, LOGITS)])]),
            widths=self._widths,
            kv_heads=[each.k_proj.out_features // each.head_dim for each in attentions],
            head_dim=[each.head_dim for each in attentions],
            tables=self._tables or [None],
            rotary=decoder.rotary_emb,
            softcap=float(getattr(text, "final_logit_softcapping", None) or 0),
            vocabulary=head.out_features,
            weights=self._weights,
            shares=self._shares,
            embedding=self._names[id(embedding)],
            held=self._held,
        )

    def _block(self, number: int, block: Any) -> Iterator[abi.Op]:
        attention, mlp = block.self_attn, block.mlp
        qkv = [(attention.q_proj, QUERY), (attention.k_proj, KEY), (attention.v_proj, VALUE)]
        yield from self._linears(HIDDEN, block.input_layernorm, qkv, "qkv")
        dim = attention.head_dim
        heads, kv_heads = (layer.out_features // dim for layer in (attention.q_proj, attention.k_proj))
        for name, buffer, count in (("q_norm", QUERY, heads), ("k_norm", KEY, kv_heads)):
            if getattr(attention, name, None) is not None:
                yield self._norm(getattr(attention, name), buffer, buffer, heads=count)
        place = {"layer": number, "heads": heads, "kv_heads": kv_heads, "head_dim": dim}
        if dim > abi.MOST_HEAD_DIM:
            raise NotServedError(
                f"the native engine serves heads of up to {abi.MOST_HEAD_DIM}, this model's have {dim}"
            )
        rotated = self._rotated if getattr(attention, "use_rope", True) else 0
        store = abi.Op(kind=OpKind.ROTATE_STORE, in_=QUERY, aux=KEY, rotated=rotated, **place)
        store.table = self._table(attention)
        store.outs[0] = VALUE
        yield store
        self._use(ATTENDED, heads * dim)
        yield abi.Op(
            kind=OpKind.ATTEND,
            in_=QUERY,
            out=ATTENDED,
            scale=attention.scaling,
            softcap=getattr(attention, "attn_logit_softcapping", None) or 0,
            window=_window(attention),
            **place,
        )
        after, before = "post_attention_layernorm", "pre_feedforward_layernorm"
        wraps = hasattr(block, before)  # Gemma 2 and 3: a norm behind each half as well as before it
        yield from self._onto(ATTENDED, attention.o_proj, getattr(block, after) if wraps else None)
        norm = getattr(block, before if wraps else after)
        if hasattr(mlp, "experts"):
            yield from self._mixture(mlp, norm)
            return
        gate_up = [(mlp.gate_proj, GATE), (mlp.up_proj, UP)]
        yield from self._linears(HIDDEN, norm, gate_up, "gate_up")
        down = _gated(mlp.act_fn)
        yield from self._onto(GATE, mlp.down_proj, block.post_feedforward_layernorm if wraps else None, **down)

    def _mixture(self, mixture: Any, norm: nn.Module) -> Iterator[abi.Op]:
        """A mixture of experts, and the shared one beside them if there is one, onto the hidden state."""
        router, experts = mixture.gate, mixture.experts
        yield self._norm(norm, HIDDEN, ASIDE)
        count, _, width = experts.gate_up_proj.shape
        logits = abi.Op(kind=OpKind.LINEAR, in_=ASIDE, count=1, width=width)
        name = self._names[id(router)]
        if name not in self._weights:
            self._weights[name] = self._float_weight(router.weight)
        logits.matrices[0], logits.outs[0] = self._weights[name].struct, ROUTES
        yield logits
        normed = getattr(router, "norm_topk_prob", True)
        yield abi.Op(kind=OpKind.ROUTE, in_=ROUTES, out=CHOSEN, count=router.top_k, width=count, accumulate=normed)
        if hasattr(mixture, "shared_expert"):
            shared = mixture.shared_expert
            yield from self._linears(ASIDE, None, [(shared.gate_proj, GATE), (shared.up_proj, UP)], "gate_up")
            yield from self._linear(GATE, None, [(shared.down_proj, MADE)], **_gated(shared.act_fn))
            yield from self._linear(ASIDE, None, [(mixture.shared_expert_gate, ROUTES)])
            yield abi.Op(kind=OpKind.BLEND, in_=MADE, aux=ROUTES, out=HIDDEN, width=width)
        share = router.top_k / count
        inner = _array([op for number in range(count) for op in self._expert(experts, number, share)])
        self._held.append(inner)
        step = abi.Op(
            kind=OpKind.EXPERTS, in_=ASIDE, aux=CHOSEN, out=HIDDEN, count=count, heads=router.top_k, width=width
        )
        step.inner, step.outs[0], step.outs[1] = ctypes.addressof(inner), SENT, MADE
        yield step
        half = experts.gate_up_proj.shape[1] // 2
        uses = {ROUTES: count, CHOSEN: 2 * router.top_k, SENT: width, MADE: width, GATE: half, UP: half}
        for buffer, columns in uses.items():
            self._use(buffer, columns)

    def _expert(self, experts: Any, number: int, share: float) -> Iterator[abi.Op]:
        """Two steps: gate with up, then down."""
        name, half = self._names[id(experts)].removesuffix(".weight"), experts.gate_up_proj.shape[1] // 2
        first = abi.Op(kind=OpKind.LINEAR, in_=SENT, count=2, width=experts.gate_up_proj.shape[2])
        last = abi.Op(kind=OpKind.LINEAR, in_=GATE, count=1, width=half, **_gated(experts.act_fn))
        for op, stack, part, buffer in (
            (first, "gate_up_proj", 0, GATE), (first, "gate_up_proj", 1, UP), (last, "down_proj", 0, MADE)
        ):  # fmt: skip
            key = f"{name}.{stack}.{number}.{part}"
            if key not in self._weights:
                matrix = getattr(experts, stack)[number]
                dense = matrix if op is last else matrix[part * half : (part + 1) * half]
                self._weights[key] = (
                    packed_weight(self._codes[key]) if key in self._codes else self._float_weight(dense)
                )
            self._shares[key] = share
            op.matrices[part], op.outs[part] = self._weights[key].struct, buffer
        yield from (first, last)

    def _onto(self, source: int, layer: nn.Linear, norm: nn.Module | None, **settings: Any) -> Iterator[abi.Op]:
        """A layer whose outputs, after a norm if there is one, are added to the hidden state."""
        if norm is None:
            yield from self._linear(source, None, [(layer, HIDDEN)], accumulate=1, **settings)
        else:
            yield from self._linear(source, None, [(layer, ASIDE)], **settings)
            yield self._norm(norm, ASIDE, HIDDEN, accumulate=1)

    def _linears(
        self, source: int, norm: nn.Module | None, layers: list[tuple[nn.Linear, int]], fusion: str
    ) -> Iterator[abi.Op]:
        """Layers that read the same normed input, in one step if they round it alike, or in one each."""
        together = fusion in self._fusions and len({_grid_of(layer) for layer, _ in layers}) == 1
        for some in [layers] if together else [[layer] for layer in layers]:
            yield from self._linear(source, norm, some)

    def _linear(
        self, source: int, norm: nn.Module | None, layers: list[tuple[nn.Linear, int]], **settings: Any
    ) -> Iterator[abi.Op]:
        width = layers[0][0].in_features
        op = abi.Op(kind=OpKind.LINEAR, in_=source, count=len(layers), width=width, **settings)
        set_grid(op, _grid_of(layers[0][0]))
        if norm is not None and "norm" in self._fusions:
            self._set_norm(op, norm)
        elif norm is not None:
            yield self._norm(norm, source, ASIDE)
            op.in_ = ASIDE
        for place, (layer, buffer) in enumerate(layers):
            op.matrices[place] = self._weight(layer).struct
            op.outs[place] = buffer
            op.biases[place] = self._floats(layer.bias) if getattr(layer, "bias", None) is not None else None
            self._use(buffer, layer.out_features)
        yield op
        for layer, buffer in layers:
            yield from self._beside(op, layer, buffer)

    def _beside(self, op: abi.Op, layer: nn.Linear, buffer: int) -> Iterator[abi.Op]:
        """The layer's low-rank matrix, if it has one: right factor, then left, onto what its weight gave."""
        name = self._names[id(layer)].removesuffix(".weight")
        if name not in self._low_ranks:
            return
        matrix = self._low_ranks[name]
        first = abi.Op(
            kind=OpKind.LINEAR, in_=op.in_, aux=op.aux, width=op.width, count=1, prologue=op.prologue,
            activation=op.activation, eps=op.eps, weight=op.weight,
        )  # fmt: skip
        second = abi.Op(kind=OpKind.LINEAR, in_=RANKS, width=matrix.rank, count=1, accumulate=1)
        for step, part, factor, to in ((first, "right", matrix.right, RANKS), (second, "left", matrix.left, buffer)):
            key = f"{name}.{part}"
            if key not in self._weights:
                self._weights[key] = float_weight(factor, self._dtype or factor.dtype)
            step.matrices[0], step.outs[0] = self._weights[key].struct, to
            yield step
        self._use(RANKS, matrix.rank)

    def _norm(self, norm: Any, source: int, to: int, heads: int = 1, accumulate: int = 0) -> abi.Op:
        op = abi.Op(kind=OpKind.NORM, in_=source, out=to, heads=heads, accumulate=accumulate)
        self._set_norm(op, norm)
        op.width = norm.weight.shape[0]
        if op.width > abi.MOST_NORM:
            raise NotServedError(f"the native engine norms up to {abi.MOST_NORM} values, this model has {op.width}")
        self._use(to, op.width * heads)
        return op

    def _set_norm(self, op: abi.Op, norm: Any) -> None:
        """The norm's rate and weight. A module of transformers whose weight counts from 1 says so by its output."""
        name = type(norm).__name__
        if not name.endswith("RMSNorm"):
            raise NotServedError(f"the native engine has no norm {name}: it has root mean square norms")
        eps = getattr(norm, "variance_epsilon", None)
        op.eps = norm.eps if eps is None else eps
        op.prologue = Prologue.RMS
        weight = norm.weight.detach().float()
        ones = torch.ones(1, weight.shape[0], dtype=norm.weight.dtype)
        with torch.no_grad():
            offset = bool((norm(ones) / (1 + op.eps) ** -0.5 - weight).mean().abs() > 0.5)
        op.weight = self._floats(weight + 1 if offset else weight)

    def _weight(self, layer: Any) -> Weight:
        """The layer's weight, once for layers that share it."""
        name = self._names[id(layer)]
        if name in self._weights:
            return self._weights[name]
        if type(layer).__name__ != "Linear" and not isinstance(layer, nn.Embedding):
            kind = type(layer).__name__
            raise NotServedError(f"the native engine runs plain linear layers, and this model has a {kind}")
        codes: Codes | None = None
        if not self._corrected_in_place(layer):
            codes = self._codes[name] if name in self._codes else codes_of_layer(layer)
        weight = self._weights[name] = self._dense(layer) if codes is None else self._packed(codes)
        return weight

    def _packed(self, codes: Codes) -> Weight:
        for other, weight in self._packed_before:
            if other is codes:  # tied: one tensor, two modules
                return weight
        self._packed_before.append((codes, packed_weight(codes)))
        return self._packed_before[-1][1]

    def _dense(self, layer: Any) -> Weight:
        unpack(layer)
        values: Tensor = layer.weight.detach()
        if self._corrected_in_place(layer):
            name = self._names[id(layer)].removesuffix(".weight")
            values = values + self._low_ranks[name].dense()
            return float_weight(values, self._dtype or brief_dtype(values))
        if values.data_ptr() not in self._tensors:  # else tied: one tensor, two modules
            self._tensors[values.data_ptr()] = self._float_weight(values)
        return self._tensors[values.data_ptr()]

    def _float_weight(self, values: Tensor) -> Weight:
        dtype = values.dtype if values.element_size() == 2 else brief_dtype(values)
        return float_weight(values.detach(), self._dtype or dtype)

    def _corrected_in_place(self, layer: nn.Module) -> bool:
        """Whether a low-rank matrix is added to the weight: an embedding's rows are looked up, not multiplied."""
        return isinstance(layer, nn.Embedding) and self._names[id(layer)].removesuffix(".weight") in self._low_ranks

    def _floats(self, values: Tensor) -> int:
        """The address of values float32, filled up with zeros as the kernels read them."""
        kept = pad(values.detach().float(), (0, -len(values) % abi.LANES)).contiguous()
        self._held.append(kept)
        return kept.data_ptr()

    def _use(self, buffer: int, width: int) -> None:
        self._widths[buffer] = max(width, self._widths.get(buffer, 0))

    def _table(self, attention: Any) -> int:
        kind = getattr(attention, "layer_type", None) if _has_tables(self._decoder.rotary_emb) else None
        if kind not in self._tables:
            self._tables.append(kind)
        if len(self._tables) > abi.TABLES:
            raise NotServedError(f"the native engine has {abi.TABLES} rotary embeddings, this model more")
        return self._tables.index(kind)

    @cached_property
    def _rotated(self) -> int:
        """Leading dimensions of a head that are rotated, the same in all layers."""
        rotary = self._decoder.rotary_emb
        table = self._decoder.config.layer_types[0] if _has_tables(rotary) else None
        return angles(rotary, torch.zeros(1, 1, dtype=torch.long), table)[0].shape[-1]


def set_grid(op: abi.Op, grid: InputGrid | None) -> None:
    """Says how a linear step rounds its inputs; None: not at all."""
    if grid is not None:
        whole = grid.scale or float(grid.format == "nvfp4")  # whose groups' scales are shares of one for all
        op.grid, op.grid_bits, op.scale = GRIDS[grid.format], grid.bits, whole


def _grid_of(layer: nn.Module) -> InputGrid | None:
    """How the inputs of a layer are rounded, whether the model was opened as it is stored or not."""
    return input_grid(layer) or stored_input_grids(layer).get("")


def _gated(activation: nn.Module) -> dict[str, Any]:
    """What a step needs that reads the product of gate, bent by this activation, and up."""
    name = type(activation).__name__
    if name not in ACTIVATIONS:
        raise NotServedError(f"the native engine has no activation {name}: it has {', '.join(ACTIVATIONS)}")
    return {"prologue": Prologue.GATED, "activation": ACTIVATIONS[name], "aux": UP}


def _array(ops: list[abi.Op]) -> Any:
    return (abi.Op * len(ops))(*ops)


def decoder_of(model: nn.Module) -> Any:
    """The module that holds the text decoder's embedding, blocks, last norm and rotary embedding.

    Raises `NotServedError` if there is none that the native engine runs.
    """
    parts = ("embed_tokens", "layers", "norm", "rotary_emb")
    decoder: Any = next((part for part in model.modules() if all(hasattr(part, name) for name in parts)), None)
    if decoder is None:
        raise NotServedError(f"{type(model).__name__} has no text decoder that the native engine serves: {_served()}")
    for block in decoder.layers:
        if type(block).__name__ not in BLOCKS:
            raise NotServedError(f"the native engine does not serve blocks of kind {type(block).__name__}: {_served()}")
    kinds = getattr(decoder.rotary_emb, "rope_type", "default")
    for kind in kinds.values() if isinstance(kinds, Mapping) else (kinds,):
        if kind not in ROPES:
            raise NotServedError(f"the native engine has no rotary embedding {kind!r}: it has {', '.join(ROPES)}")
    return decoder


def mixtures_of(decoder: Any) -> list[Any]:
    """The decoder's modules of stacked experts."""
    return [block.mlp.experts for block in decoder.layers if hasattr(block.mlp, "experts")]


def angles(rotary: Any, positions: Tensor, table: str | None) -> tuple[Tensor, Tensor]:
    """Cosines and sines (length, rotated), float32, at positions (1, length), or (3, 1, length) where images count in
    rows and columns."""
    of: Callable[..., Any] = rotary
    if positions.ndim == 2 and _has_axes(rotary):
        positions = positions[None].expand(3, -1, -1)
    like = torch.zeros(1)
    cosines, sines = of(like, positions) if table is None else of(like, positions, table)
    return cosines[0].float().contiguous(), sines[0].float().contiguous()


def _has_tables(rotary: Any) -> bool:
    return "layer_type" in inspect.signature(rotary.forward).parameters


def _has_axes(rotary: Any) -> bool:
    return "mrope_section" in (getattr(rotary.config, "rope_parameters", None) or {})


def _window(attention: Any) -> int:
    """How many places, its own among them, a token of this layer sees; 0 for all."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window or 0
    if type(attention).__name__ in ("MistralAttention", "MixtralAttention"):
        return getattr(attention.config, "sliding_window", None) or 0
    return 0


def _served() -> str:
    return "it serves " + ", ".join(name.removesuffix("DecoderLayer") for name in BLOCKS)
