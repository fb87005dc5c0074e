"""`tiny-lm` and its draft: a small Llama on public-domain English, and a smaller one distilled from it.

The books come from `gutenberg.zip` in the folder that GOSSAMER_DATA names. The parts listed under `held_out` in the
config are cut out before anything else sees the text, the tokenizer included; `python training/lm.py CONFIG` writes
them as the evaluation texts the package ships.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ROOT / "src/gossamer/data/texts"
END = "<|endoftext|>"
HEADING = re.compile(r"^(chapter|book|part|stave|epilogue|finale|adventure)\b", re.IGNORECASE)
TYPEWRITER = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "—": "--", "–": "-", "…": "...", "\xa0": " ", "_": None}
)
SHORTEST_CHAPTER = 300
PREPARED = 1  # count up when the functions that make the tokens change


# --- the text ---------------------------------------------------------------------------------------------------------


def tidy(text: str) -> list[str]:
    """Paragraphs, one string each, in typewriter punctuation."""
    text = re.sub(r"\{pg [^}]*\}|\[Illustration[^\]]*\]", "", text.translate(TYPEWRITER))
    return [" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text) if paragraph.strip()]


def books(archive: Path) -> dict[str, list[str]]:
    """Every book of a zip as paragraphs, in order of name."""
    with zipfile.ZipFile(archive) as opened:
        return {name: tidy(opened.read(name).decode()) for name in sorted(opened.namelist()) if name.endswith(".txt")}


def split(all_books: dict[str, list[str]], held_out: dict[str, dict[str, str]]) -> tuple[list[str], dict[str, str]]:
    """The training chapters, and the held-out parts: each from its heading's last occurrence to the end of its book."""
    remaining, parts = dict(all_books), {}
    for name, part in held_out.items():
        paragraphs = remaining[part["book"]]
        starts = [i for i, paragraph in enumerate(paragraphs) if paragraph == part["from"]]
        if not starts:
            raise ValueError(f"held_out.{name}: {part['book']} has no paragraph {part['from']!r}")
        parts[name] = "\n\n".join(paragraphs[starts[-1] :]) + "\n"
        remaining[part["book"]] = paragraphs[: starts[-1]]
    chapters: list[list[str]] = []
    for paragraphs in remaining.values():
        chapters.append([])
        for paragraph in paragraphs:
            if HEADING.match(paragraph) and len(paragraph) < 120:
                chapters.append([])
            chapters[-1].append(paragraph)
    texts = ["\n\n".join(chapter) + "\n" for chapter in chapters]
    return [text for text in texts if len(text) >= SHORTEST_CHAPTER], parts  # tables of contents fall away


def archive_path(data: dict[str, Any]) -> Path:
    folder = os.environ.get("GOSSAMER_DATA")
    if not folder:
        raise SystemExit("GOSSAMER_DATA is not set: it names the folder that holds " + data["archive"])
    return Path(folder) / data["archive"]


# --- tokens -----------------------------------------------------------------------------------------------------------


def train_tokenizer(chapters: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: no text is ever out of vocabulary."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(chapters, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token="<|pad|>", clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts in one row, the end token after each."""
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.array([*row, tokenizer.eos_token_id], dtype=np.int32) for row in ids])


def prepare(data: dict[str, Any]) -> tuple[PreTrainedTokenizerFast, np.ndarray, np.ndarray]:
    """Tokenizer, training tokens and validation tokens, made once and kept under a key of what they come from."""
    archive = archive_path(data)
    key = hashlib.sha256(archive.read_bytes() + json.dumps([PREPARED, data], sort_keys=True).encode())
    folder = Path(os.environ.get("GOSSAMER_CACHE", Path.home() / ".cache/gossamer")) / f"tokens/{key.hexdigest()[:16]}"
    if not (folder / "validation.npy").exists():
        chapters, parts = split(books(archive), data["held_out"])
        if "tokenizer" in data:
            tokenizer = AutoTokenizer.from_pretrained(ROOT / data["tokenizer"])
        else:
            tokenizer = train_tokenizer(chapters, data["vocabulary"])
        tokenizer.save_pretrained(folder)
        np.save(folder / "train.npy", encode(tokenizer, chapters))
        np.save(folder / "validation.npy", encode(tokenizer, [parts["validation"]]))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer, np.load(folder / "train.npy"), np.load(folder / "validation.npy")


# --- the job ----------------------------------------------------------------------------------------------------------


class LanguageModel:
    """Next-token prediction, with a teacher's distribution beside the text where the config names one."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.context: int = config["data"]["context"]
        self.tokenizer, self.tokens, self.validation = prepare(config["data"])
        self.model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(self.tokenizer),
                max_position_embeddings=self.context,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                tie_word_embeddings=True,
                attn_implementation="eager",  # on a CPU in bf16 faster than its flash kernels at this size
                **config["model"],
            )
        )
        loss = config.get("loss") or {}
        self.from_teacher: float = loss.get("distil", 0.0)
        self.teacher = None
        if self.from_teacher:
            self.teacher = AutoModelForCausalLM.from_pretrained(ROOT / loss["teacher"], dtype=torch.float32)
            self.teacher.eval().requires_grad_(False)

        @cache
        def order(epoch: int) -> tuple[np.ndarray, int]:
            rng = np.random.default_rng((config["seed"], epoch))
            return rng.permutation((len(self.tokens) - 1) // self.context - 1), int(rng.integers(self.context))

        self._order = order

    def rows(self, step: int, batch_size: int) -> Tensor:
        """`batch_size` windows of context + 1 tokens: each epoch visits every window once, at its own random offset."""
        windows = []
        per_epoch = (len(self.tokens) - 1) // self.context - 1
        for i in range(step * batch_size, (step + 1) * batch_size):
            permutation, offset = self._order(i // per_epoch)
            start = int(permutation[i % per_epoch]) * self.context + offset
            windows.append(self.tokens[start : start + self.context + 1])
        return torch.from_numpy(np.stack(windows).astype(np.int64)).to(self.model.device)

    def loss(self, step: int, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        rows = self.rows(step, batch_size)
        inputs, targets = rows[:, :-1], rows[:, 1:].flatten()
        with torch.autocast(rows.device.type, torch.bfloat16):
            logits = self.model(input_ids=inputs, use_cache=False).logits
        text = functional.cross_entropy(logits.float().flatten(0, 1), targets)
        if self.teacher is None:
            return text, {}
        self.teacher.to(rows.device)
        with torch.no_grad(), torch.autocast(rows.device.type, torch.bfloat16):
            wanted = self.teacher(input_ids=inputs, use_cache=False).logits
        distil = functional.kl_div(
            functional.log_softmax(logits.float().flatten(0, 1), -1),
            functional.log_softmax(wanted.float().flatten(0, 1), -1),
            log_target=True,
            reduction="batchmean",
        )
        return (1 - self.from_teacher) * text + self.from_teacher * distil, {"text": text.item(), "kl": distil.item()}

    def evaluate(self, limit: int) -> dict[str, float]:
        losses = window_nll(self.model, self.validation, self.context, limit)
        return {"nll": float(losses.mean()), "perplexity": float(np.exp(losses.mean()))}

    def export(self, directory: Path) -> None:
        """The model in float16: that 16-bit model is the baseline that every compression is measured against."""
        half = LlamaForCausalLM(self.model.config).to(torch.float16)
        half.load_state_dict(self.model.state_dict())
        half.save_pretrained(directory)
        (directory / "model.safetensors").chmod(0o644)
        self.tokenizer.save_pretrained(directory)
        (directory / "gossamer.json").write_text(json.dumps({"task": "text", "data": "heldout"}) + "\n")

    def card(self, directory: Path) -> str:
        return write_card(self, directory)


def build(config: dict[str, Any]) -> LanguageModel:
    return LanguageModel(config)


# --- measuring --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def window_nll(model: LlamaForCausalLM, tokens: np.ndarray, context: int, limit: int | None = None) -> np.ndarray:
    """Mean negative log-likelihood per window of `context` tokens, windows side by side, their first token given."""
    count = min(len(tokens) // context, limit or len(tokens))
    rows = torch.from_numpy(tokens[: count * context].astype(np.int64)).view(count, context)
    means = []
    for batch in rows.split(8):
        batch = batch.to(model.device)
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1].float()
        nll = functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        means.append(nll.double().mean(1).cpu())
    return torch.cat(means).numpy()


def interval(losses: np.ndarray, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the perplexity, resampling windows (seed 0)."""
    rng = np.random.default_rng(0)
    means = losses[rng.integers(len(losses), size=(draws, len(losses)))].mean(1)
    low, high = np.exp(np.quantile(means, [0.025, 0.975]))
    return float(low), float(high)


@torch.no_grad()
def agreement(
    draft: LlamaForCausalLM, target: LlamaForCausalLM, tokens: np.ndarray, context: int
) -> tuple[float, float]:
    """How often both prefer the same token, and the mean chance that speculative sampling accepts a drafted one."""
    count = len(tokens) // context
    rows = torch.from_numpy(tokens[: count * context].astype(np.int64)).view(count, context)
    same, accepted = [], []
    for batch in rows.split(8):
        ours, theirs = (model(input_ids=batch, use_cache=False).logits.float() for model in (draft, target))
        same.append((ours.argmax(-1) == theirs.argmax(-1)).double().mean(1))
        accepted.append(torch.minimum(ours.softmax(-1), theirs.softmax(-1)).sum(-1).double().mean(1))
    return float(torch.cat(same).mean()), float(torch.cat(accepted).mean())


def write_card(job: LanguageModel, directory: Path) -> str:
    """The model card of what was just exported, measured on the files as they lie there."""
    record = json.loads((directory / "training.json").read_text())
    name = Path(job.config["export"]).name
    text = (TEXTS / "heldout.txt").read_text()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32)
    if tokenizer.decode(tokens) != text:
        raise RuntimeError(f"{directory}: the saved tokenizer does not give the held-out text back")
    saved = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()  # fp16 values, fp32 arithmetic
    losses = window_nll(saved, tokens, job.context)
    trained = window_nll(job.model.cpu().eval(), tokens, job.context)
    perplexity, (low, high) = float(np.exp(losses.mean())), interval(losses)
    scored = len(losses) * (job.context - 1)
    per_byte = losses.mean() / np.log(2) * len(tokens) / len(text.encode())
    prompt = tokenizer("The next morning, when", return_tensors="pt")["input_ids"]
    torch.manual_seed(0)
    sample = saved.generate(prompt, max_new_tokens=120, do_sample=True, temperature=0.8, top_k=40)[0]
    model, data = saved.config, job.config["data"]
    seen = record["steps"] * record["batch"] * job.context
    rows = {
        "architecture": f"`LlamaForCausalLM`: width {model.hidden_size}, {model.num_hidden_layers} layers, "
        f"{model.num_attention_heads} heads / {model.num_key_value_heads} key-value heads, "
        f"SwiGLU {model.intermediate_size}, tied embeddings, context {job.context}",
        "tokenizer": f"byte-level BPE, {len(tokenizer):,} entries, trained on the training text; "
        f"`{END}` begins and ends a chapter",
        "stored": f"float16 safetensors, {(directory / 'model.safetensors').stat().st_size:,} bytes",
        "data": f"{len(books(archive_path(data)))} public-domain novels (Project Gutenberg texts without boilerplate), "
        f"{len(job.tokens):,} training tokens, without the held-out parts",
        "training": f"{record['steps']:,} steps × {record['batch']} × {job.context} tokens = {seen / 1e6:.1f} M tokens "
        f"({seen / len(job.tokens):.1f} epochs), seed {record['seed']}, one run{job.config.get('note', '')}",
        "wall time": f"{record['elapsed_s'] / 60:.0f} minutes on {record['threads']} CPU thread(s) of "
        f"{record['device']}, other jobs on the machine; torch {record['torch']}, bf16 autocast",
        "recipe": f"AdamW, betas {job.config['betas']}, lr {job.config['lr']}, "
        f"weight decay {job.config['weight_decay']}, warm-up {job.config['warmup']}, cosine to 5 %, "
        f"clip {job.config['clip']}",
    }
    if job.teacher is not None:
        same, accepted = agreement(saved, job.teacher.cpu(), tokens, job.context)
        teacher = Path(job.config["loss"]["teacher"]).name
        rows["distilled"] = f"loss = {job.from_teacher} × KL to `{teacher}` + the rest × cross-entropy with the text"
        rows[f"as a draft for `{teacher}`"] = (
            f"on the held-out text both prefer the same next token {same:.1%} of the time; a drafted token is accepted "
            f"with chance {accepted:.1%} (mean overlap of the two distributions, temperature 1)"
        )
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    quoted = tokenizer.decode(sample, skip_special_tokens=True).replace("\n", "\n> ")
    return f"""# {name}

A Llama-architecture English language model with {sum(p.numel() for p in saved.parameters()):,} parameters,
trained from scratch for Gossamer and shipped in it: small enough to compress, evaluate and look into within seconds on
any machine, trained enough that compression has something to lose. It writes English-looking prose and knows nothing.
Its books are of the nineteenth and early twentieth century, *Huckleberry Finn* among them: it can write their slurs.

| | |
|---|---|
{table}

## Held-out perplexity

**{perplexity:.4f}** (95 % interval {low:.2f} to {high:.2f}), {per_byte:.3f} bits per byte, on
`gossamer/data/texts/heldout.txt` ({len(text.encode()):,} bytes, {len(tokens):,} tokens): the last part of a novel
whose earlier part was trained on, so names and style are familiar and the sentences are not. Nothing was chosen by
looking at this text; the training was watched on a part of another book (`validation.txt`).

Protocol: no special tokens added, context {job.context}, stride {job.context} (windows side by side), the first token
of each window given, {len(losses)} windows, n = {scored:,} scored tokens, the last partial window dropped; float16
weights, float32 arithmetic. Interval: 2,000 bootstrap draws over windows, seed 0.
The fp32 master weights give {np.exp(trained.mean()):.4f}.

Sampled (temperature 0.8, top 40, seed 0):

> {quoted}

## Reproduce

```sh
export GOSSAMER_DATA=FOLDER        # holds gutenberg.zip
{record["command"]} --threads {record["threads"]}
{record["command"]} --export-only --card        # measures again
```

Licence: Apache-2.0, like the rest of Gossamer.
"""


def main() -> int:
    """Write the held-out parts of a config as the texts the package ships."""
    data = yaml.safe_load(Path(sys.argv[1]).read_text())["data"]
    _, parts = split(books(archive_path(data)), data["held_out"])
    TEXTS.mkdir(parents=True, exist_ok=True)
    for name, text in parts.items():
        (TEXTS / f"{name}.txt").write_text(text)
        print(f"{name}.txt: {len(text.encode()):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
