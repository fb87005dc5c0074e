"""llama2.c's files: checkpoints of version 0 and 1 (float32) and 2 (grouped int8), and its tokenizer.

A checkpoint holds a Llama model in Meta's layout, in which the two halves of a rotary pair are neighbours; transformers
keeps them half a head apart, so the rows of the query and key matrices are reordered on the way in.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import DataError, ModelError

if TYPE_CHECKING:
    import torch

_MAGIC = 0x616B3432
_HEADER = 256
_ACCEPTED = "Gossamer opens llama2.c files of version 0, 1 and 2"


@dataclass(frozen=True)
class Header:
    """What the file says about itself. `version` 0 to 2; `group` is the int8 group of version 2, else 0;
    `start` is the byte at which the tensors begin."""

    version: int
    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    shared: bool
    group: int
    start: int

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of the matrices in the order of the file, each kind stacked over the layers."""
        kv = self.dim * self.kv_heads // self.heads
        yield "embed", (self.vocabulary, self.dim)
        for name, rows, columns in (
            ("wq", self.dim, self.dim), ("wk", kv, self.dim), ("wv", kv, self.dim), ("wo", self.dim, self.dim),
            ("w1", self.hidden, self.dim), ("w2", self.dim, self.hidden), ("w3", self.hidden, self.dim),
        ):  # fmt: skip
            yield name, (self.layers, rows, columns)
        if not self.shared:
            yield "head", (self.vocabulary, self.dim)

    def config(self) -> dict[str, Any]:
        """The equal `LlamaConfig`, as keyword arguments."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.vocabulary, "hidden_size": self.dim, "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads,
            "max_position_embeddings": self.context, "rms_norm_eps": 1e-5, "tie_word_embeddings": self.shared,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        """Bytes of all tensors as stored: float32, or int8 with one float32 scale for each group."""
        norms = 4 * self.dim * (2 * self.layers + 1)
        matrices = 0
        for _, shape in self.shapes():
            count = 1
            for size in shape:
                count *= size
            matrices += count + 4 * (count // self.group) if self.version == 2 else 4 * count
        return norms + matrices

    @property
    def file_bytes(self) -> int:
        """The file's exact size; version 0 also holds rotary tables, which are not weights."""
        tables = 4 * self.context * (self.dim // self.heads) if self.version == 0 else 0
        return self.start + self.weight_bytes + tables


def read_header(path: Path) -> Header:
    """Reads and checks the header against the file's size. Raises `ModelError` for anything else than a whole file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_HEADER)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(head) < 28:
        raise ModelError(f"{path} is not a llama2.c file: it has only {len(head)} bytes; {_ACCEPTED}")
    if struct.unpack_from("<I", head)[0] == _MAGIC and len(head) == _HEADER:
        version, dim, hidden, layers, heads, kv_heads, vocabulary, context, shared, group = struct.unpack_from(
            "<8iBi", head, 4
        )
        if version not in (1, 2):
            raise ModelError(f"{path} is a llama2.c file of version {version}; {_ACCEPTED}")
        numbers = (dim, hidden, layers, heads, kv_heads, abs(vocabulary), context)
        header = Header(version, *numbers, bool(shared), group if version == 2 else 0, _HEADER)
    else:
        dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack_from("<7i", head)
        numbers = (dim, hidden, layers, heads, kv_heads, abs(vocabulary), context)
        header = Header(0, *numbers, vocabulary > 0, 0, 28)
    divisible = min(numbers) > 0 and heads > 0 and dim % heads == 0 and heads % kv_heads == 0
    if not divisible or max(numbers) > 1 << 24 or (header.version == 2 and group <= 0):
        raise ModelError(f"{path} is not a llama2.c checkpoint: its header makes no sense; {_ACCEPTED}")
    if header.file_bytes != size:
        raise ModelError(f"{path} is damaged: it has {size} bytes and its header promises {header.file_bytes}")
    return header


def read_state(path: Path, header: Header) -> "dict[str, torch.Tensor]":
    """The weights, float32, under the names of `LlamaForCausalLM`."""
    import numpy as np
    import torch

    data = np.memmap(path, dtype=np.uint8, mode="r", offset=header.start)
    position = 0

    def take(count: int, kind: Any) -> Any:
        nonlocal position
        size = count * np.dtype(kind).itemsize
        values = np.frombuffer(data[position : position + size].tobytes(), dtype=kind)
        position += size
        return values

    def matrix(shape: tuple[int, ...]) -> Any:
        count = int(np.prod(shape))
        if header.version < 2:
            return take(count, "<f4").reshape(shape)
        codes = take(count, np.int8).astype(np.float32).reshape(-1, header.group)
        return (codes * take(count // header.group, "<f4")[:, None]).reshape(shape)

    def quantised(shape: tuple[int, ...]) -> Any:
        """Version 2 writes layer by layer: codes, then scales, of each."""
        return np.stack([matrix(shape[1:]) for _ in range(shape[0])]) if len(shape) == 3 else matrix(shape)

    shapes = dict(header.shapes())
    stacked: dict[str, Any] = {}
    norms = {"attention": (header.layers, header.dim), "ffn": (header.layers, header.dim), "final": (header.dim,)}

    def norm(name: str) -> None:
        stacked[name] = take(int(np.prod(norms[name])), "<f4").reshape(norms[name])

    if header.version == 0:
        for name in ("embed", "attention", "wq", "wk", "wv", "wo", "ffn", "w1", "w2", "w3", "final"):
            norm(name) if name in norms else stacked.update({name: matrix(shapes[name])})
        position += 4 * header.context * (header.dim // header.heads)
        if not header.shared:
            stacked["head"] = matrix(shapes["head"])
    else:
        for name in norms:
            norm(name)
        for name, shape in shapes.items():
            stacked[name] = quantised(shape)
    names = {
        "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj",
        "w1": "mlp.gate_proj", "w2": "mlp.down_proj", "w3": "mlp.up_proj",
        "attention": "input_layernorm", "ffn": "post_attention_layernorm",
    }  # fmt: skip
    state = {"model.embed_tokens.weight": stacked["embed"], "model.norm.weight": stacked["final"]}
    if not header.shared:
        state["lm_head.weight"] = stacked["head"]
    for key, name in names.items():
        for layer in range(header.layers):
            values = stacked[key][layer]
            if key in ("wq", "wk"):
                heads = header.heads if key == "wq" else header.kv_heads
                values = values.reshape(heads, -1, 2, header.dim).swapaxes(1, 2).reshape(values.shape)
            state[f"model.layers.{layer}.{name}.weight"] = values
    return {name: torch.from_numpy(np.array(values, dtype=np.float32)) for name, values in state.items()}


# ------------------------------------------------------------------------------------------------- tokenizer


def find_tokenizer(checkpoint: Path, vocabulary: int) -> Path | None:
    """The tokenizer file beside a checkpoint: `tok<vocabulary>.bin`, or `tokenizer.bin`."""
    candidates = (checkpoint.parent / f"tok{vocabulary}.bin", checkpoint.parent / "tokenizer.bin")
    return next((path for path in candidates if path.is_file()), None)


def read_vocabulary(path: Path, vocabulary: int) -> list[tuple[bytes, float]]:
    """(text, score) of every token id. Raises `DataError` if the file does not hold `vocabulary` tokens."""
    content = path.read_bytes()
    entries: list[tuple[bytes, float]] = []
    position = 4
    try:
        for _ in range(vocabulary):
            score, length = struct.unpack_from("<fi", content, position)
            position += 8
            text = content[position : position + length]
            if length < 0 or len(text) != length:
                raise struct.error
            entries.append((text, score))
            position += length
    except struct.error:
        raise DataError(
            f"{path} is not the tokenizer of this model: it holds {len(entries)} tokens, the model has {vocabulary}"
        ) from None
    return entries


def build_tokenizer(path: Path, vocabulary: int) -> Any:
    """A transformers tokenizer that encodes as llama2.c does: a leading space, single characters or else bytes, then
    the best-scored merge first; `<s>` is put in front, and text that spells a special token is text.

    Raises `DataError` if the file does not fit.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>"]
    table: dict[str, int] = {}
    scores: list[float] = []
    for index, (raw, score) in enumerate(read_vocabulary(path, vocabulary)):
        text = names[index] if index < len(names) else raw.decode("utf-8", errors="replace")
        table[text if text not in table else f"<duplicate-{index}>"] = index
        scores.append(score)
    splits = []
    for text, index in table.items():
        if index < len(names) + 256:
            continue
        for cut in range(1, len(text)):
            if text[:cut] in table and text[cut:] in table:
                splits.append((-scores[index], index, cut, (text[:cut], text[cut:])))
    merges = [pair for *_, pair in sorted(splits)]
    tokenizer = Tokenizer(models.BPE(vocab=table, merges=merges, unk_token="<unk>", fuse_unk=False, byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    build: Any = PreTrainedTokenizerFast
    return build(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
