"""A tokenizer as GGUF stores it: tokens, their types and scores, merges, special ids and the way to cut text."""

import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gossamer.core.errors import ModelError
from gossamer.models.loading import quiet

_SPLITS = ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o")
"""llama.cpp's names of splits that are one expression; the expressions are transformers'."""

_LEAST = -1000.0
"""The score of tokens that no merge makes, as llama.cpp's converter gives it to added tokens."""


@dataclass(frozen=True)
class Vocabulary:
    """What the file's `tokenizer.*` keys say.

    `model` is `gpt2` (byte-level) or `llama` (SentencePiece), `split` llama.cpp's name of how text is cut first.
    `types` are llama.cpp's token types, `scores` those of SentencePiece, `space` whether text gets a leading space.
    `special` knows the special tokens, merges and the chat template (a `gguf.SpecialVocab`).
    """

    model: str
    split: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    space: bool
    special: Any

    def add_to(self, writer: Any) -> None:
        """Writes it to a `gguf.GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list([token.encode() for token in self.tokens])
        writer.add_token_types(list(self.types))
        if self.scores:
            writer.add_token_scores(list(self.scores))
            writer.add_add_space_prefix(self.space)
        self.special.add_to_gguf(writer, quiet=True)


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a transformers tokenizer, filled up to the `size` rows of the model's embedding.

    Raises `ModelError` for a tokenizer of another kind than byte-level or SentencePiece pair encoding, for a way of
    cutting text that llama.cpp has no name for, and for one with more tokens than `size`.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    model = content.get("model", {"type": type(tokenizer).__name__})
    if model["type"] != "BPE":
        raise ModelError(f"the tokenizer is of kind {model['type']}: GGUF export takes pair encodings (BPE)")
    table = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(table, default=0) >= size:
        raise ModelError(f"the tokenizer has {max(table) + 1} tokens, the model's embedding only {size} rows")
    sentencepiece = bool(model.get("byte_fallback"))
    split = "default" if sentencepiece else _split(content)
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    tokens, types = [], []
    for index in range(size):
        kind = _type(index, table, added)
        if sentencepiece and kind.name in ("NORMAL", "CONTROL"):
            kind = _piece_type(table[index], tokenizer.unk_token, kind)
        token = table.get(index, f"[PAD{index}]")
        if sentencepiece:  # text has its spaces escaped, what the user defined is looked for before that
            token = token.replace("▁", " ") if kind.name == "USER_DEFINED" else token.replace(" ", "▁")
        tokens.append(token)
        types.append(int(kind))
    scores = _scores(tokens, model["merges"]) if sentencepiece else ()
    first = tokenizer.tokenize("a")[:1]
    return Vocabulary(
        "llama" if sentencepiece else "gpt2", split, tuple(tokens), tuple(types), scores,
        first[0].startswith(("▁", " ")) if first else False,
        _special(tokenizer, size, merges=not sentencepiece),
    )  # fmt: skip


def _type(index: int, table: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> Any:
    from gguf import TokenType

    if index not in table:
        return TokenType.UNUSED
    if index in added:
        return TokenType.CONTROL if added[index]["special"] else TokenType.USER_DEFINED
    return TokenType.NORMAL


def _piece_type(token: str, unknown: str | None, otherwise: Any) -> Any:
    """SentencePiece has types of its own for the unknown token and for single bytes."""
    from gguf import TokenType

    if token == unknown:
        return TokenType.UNKNOWN
    return TokenType.BYTE if re.fullmatch("<0x[0-9A-F]{2}>", token) else otherwise


def _split(content: Mapping[str, Any]) -> str:
    """llama.cpp's name of the pre-tokenizer."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    cut = content["pre_tokenizer"] or {"type": "nothing"}
    parts = cut["pretokenizers"] if cut["type"] == "Sequence" else [cut]
    kinds = [part["type"] for part in parts]
    plain = kinds[-1] == "ByteLevel" and not parts[-1]["add_prefix_space"]
    if plain and kinds == ["ByteLevel"] and parts[0]["use_regex"]:
        return "gpt-2"
    if plain and kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1]["use_regex"]:
        return "smollm"
    if plain and kinds == ["Split", "ByteLevel"] and not parts[1]["use_regex"]:
        expression = parts[0]["pattern"].get("Regex")
        name = next((name for name in _SPLITS if GGUF_PRE_TOKENIZER_SPLITS[name] == expression), None)
        if name == "llama-bpe" and not content["model"].get("ignore_merges"):
            return "smaug-bpe"  # the same cut, for vocabularies whose words are always merged
        if name is not None:
            return name
    known = ", ".join(("gpt-2", "smollm", *_SPLITS))
    raise ModelError(f"the tokenizer cuts text in a way ({', '.join(kinds)}) other than llama.cpp's {known}")


def _scores(tokens: list[str], merges: list[Any]) -> tuple[float, ...]:
    """The earlier a merge, the higher the score of what it makes: SentencePiece merges the best score first."""
    rank: dict[str, float] = {}
    for place, merge in enumerate(merges):
        made = "".join(merge.split(" ") if isinstance(merge, str) else merge).replace(" ", "▁")
        rank.setdefault(made, -float(place))
    return tuple(rank.get(token, _LEAST - len(merges)) for token in tokens)


def _special(tokenizer: Any, size: int, merges: bool) -> Any:
    """The gguf package's reading of the tokenizer's own files; which ends are marked is taken from what it does."""
    from gguf import SpecialVocab

    with tempfile.TemporaryDirectory() as folder, quiet():
        tokenizer.save_pretrained(folder)
        special = SpecialVocab(Path(folder), load_merges=merges, n_vocab=size)
    for kind in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{kind}_token_id")
        if index is not None:
            special.special_token_ids[kind] = index
    ids = tokenizer("a")["input_ids"]
    special.add_special_token["bos"] = tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id
    special.add_special_token["eos"] = tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id
    return special
