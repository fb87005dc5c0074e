"""Writes tiny llama2.c files as llama2.c's own export script does, and encodes text as its C code does."""

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[np.float32]]
DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY, CONTEXT, GROUP = 16, 24, 2, 4, 2, 300, 32, 8
PIECES = [" ", "a", "b", "c", "d", "ab", " a", "abc", "bc", " ab", "cd", "é", "aa", "aaa", "  "]


def weights(seed: int = 0) -> Arrays:
    """Random weights in Meta's layout, each kind stacked over the layers."""
    random = np.random.default_rng(seed)
    kv = DIM * KV_HEADS // HEADS
    shapes = {
        "embed": (VOCABULARY, DIM), "attention": (LAYERS, DIM), "wq": (LAYERS, DIM, DIM), "wk": (LAYERS, kv, DIM),
        "wv": (LAYERS, kv, DIM), "wo": (LAYERS, DIM, DIM), "ffn": (LAYERS, DIM), "w1": (LAYERS, HIDDEN, DIM),
        "w2": (LAYERS, DIM, HIDDEN), "w3": (LAYERS, HIDDEN, DIM), "final": (DIM,), "head": (VOCABULARY, DIM),
    }  # fmt: skip
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def _numbers(vocabulary: int) -> tuple[int, ...]:
    return (DIM, HIDDEN, LAYERS, HEADS, KV_HEADS, vocabulary, CONTEXT)


def write_v0(path: Path, arrays: Arrays, shared: bool) -> None:
    """Version 0: a header without magic, float32, and rotary tables that readers skip."""
    body = struct.pack("<7i", *_numbers(VOCABULARY if shared else -VOCABULARY))
    for name in ("embed", "attention", "wq", "wk", "wv", "wo", "ffn", "w1", "w2", "w3", "final"):
        body += arrays[name].tobytes()
    body += np.full(CONTEXT * DIM // HEADS, 7.0, np.float32).tobytes()
    path.write_bytes(body if shared else body + arrays["head"].tobytes())


def write_v1(path: Path, arrays: Arrays, shared: bool) -> None:
    """Version 1: a 256-byte header, float32."""
    body = struct.pack("<Ii7iB", 0x616B3432, 1, *_numbers(VOCABULARY), shared).ljust(256, b"\0")
    for name in ("attention", "ffn", "final", "embed", "wq", "wk", "wv", "wo", "w1", "w2", "w3"):
        body += arrays[name].tobytes()
    path.write_bytes(body if shared else body + arrays["head"].tobytes())


def write_v2(path: Path, arrays: Arrays, shared: bool) -> Arrays:
    """Version 2: int8 in groups. Returns the weights as they read back."""
    body = struct.pack("<Ii7iBi", 0x616B3432, 2, *_numbers(VOCABULARY), shared, GROUP).ljust(256, b"\0")
    back = dict(arrays)
    for name in ("attention", "ffn", "final"):
        body += arrays[name].tobytes()
    for name in ("embed", "wq", "wk", "wv", "wo", "w1", "w2", "w3", *(() if shared else ("head",))):
        parts = []
        for matrix in arrays[name] if arrays[name].ndim == 3 else [arrays[name]]:
            grouped = matrix.reshape(-1, GROUP)
            scales = (np.abs(grouped).max(1) / 127.0).astype(np.float32)
            codes = np.round(grouped / scales[:, None]).astype(np.int8)
            body += codes.tobytes() + scales.tobytes()
            parts.append((codes * scales[:, None]).reshape(matrix.shape).astype(np.float32))
        back[name] = np.stack(parts) if arrays[name].ndim == 3 else parts[0]
    path.write_bytes(body)
    return back


def logits(arrays: Arrays, tokens: Sequence[int], shared: bool) -> NDArray[np.float32]:
    """The forward pass of llama2.c's run.c, position by position: (positions, vocabulary)."""

    def norm(x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
        return weight * x / np.sqrt((x * x).mean() + 1e-5)

    size = DIM // HEADS
    keys: list[list[NDArray[np.float32]]] = [[] for _ in range(LAYERS)]
    values: list[list[NDArray[np.float32]]] = [[] for _ in range(LAYERS)]
    out = []
    for position, token in enumerate(tokens):
        x = arrays["embed"][token]
        for layer in range(LAYERS):
            h = norm(x, arrays["attention"][layer])
            q, k, v = (arrays[name][layer] @ h for name in ("wq", "wk", "wv"))
            for vector in (q, k):
                for i in range(0, len(vector), 2):
                    angle = position / 10000.0 ** ((i % size) / size)
                    a, b = vector[i], vector[i + 1]
                    vector[i] = a * np.cos(angle) - b * np.sin(angle)
                    vector[i + 1] = a * np.sin(angle) + b * np.cos(angle)
            keys[layer].append(k.reshape(KV_HEADS, size))
            values[layer].append(v.reshape(KV_HEADS, size))
            mixed = np.zeros((HEADS, size), np.float32)
            for head in range(HEADS):
                kv = head * KV_HEADS // HEADS
                scores = np.array([q.reshape(HEADS, size)[head] @ key[kv] for key in keys[layer]]) / np.sqrt(size)
                share = np.exp(scores - scores.max())
                share /= share.sum()
                mixed[head] = sum(s * value[kv] for s, value in zip(share, values[layer], strict=True))
            x = x + arrays["wo"][layer] @ mixed.reshape(-1)
            h = norm(x, arrays["ffn"][layer])
            gate = arrays["w1"][layer] @ h
            x = x + arrays["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (arrays["w3"][layer] @ h))
        out.append(arrays["embed" if shared else "head"] @ norm(x, arrays["final"]))
    return np.stack(out)


def vocabulary() -> list[tuple[bytes, float]]:
    """(text, score): the specials, the bytes, then a few pieces, the earlier the better."""
    entries = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    entries += [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    entries += [(text.encode(), -float(index)) for index, text in enumerate(PIECES)]
    entries += [(f"[{index}]".encode(), -1000.0 - index) for index in range(VOCABULARY - len(entries))]
    return entries


def write_tokenizer(path: Path) -> None:
    """The tokenizer file of `vocabulary`."""
    entries = vocabulary()
    body = struct.pack("<i", max(len(text) for text, _ in entries))
    for text, score in entries:
        body += struct.pack("<fi", score, len(text)) + text
    path.write_bytes(body)


def encode(text: str, entries: Sequence[tuple[bytes, float]]) -> list[int]:
    """run.c's `encode` with its start token."""
    table = {piece: index for index, (piece, _) in reversed(list(enumerate(entries)))}
    tokens = [1]
    if text:
        tokens.append(table[b" "])
    for character in text:
        raw = character.encode()
        tokens += [table[raw]] if raw in table else [byte + 3 for byte in raw]
    while True:
        best, where, merged = -1e10, -1, -1
        for i in range(len(tokens) - 1):
            joined = table.get(entries[tokens[i]][0] + entries[tokens[i + 1]][0])
            if joined is not None and entries[joined][1] > best:
                best, where, merged = entries[joined][1], i, joined
        if where < 0:
            return tokens
        tokens[where : where + 2] = [merged]
