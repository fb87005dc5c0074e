"""tiny-vlm: a LLaVA trained from nothing on rendered scenes, all questions of an image packed behind it.

Sequence: 64 image tokens, then fixed slots, one question each. A slot sees the image and itself, nothing else, and its
positions start after the image, so a packed question gives the same logits as the question alone.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gossamer.data.scenes import COLOURS, KINDS, NUMBERS, SHAPES, SIZES, Scene, questions, scene, vocabulary
from halves import shared_out

SLOTS = ((13, 8), (6, 11))
"""(how many, tokens each): short questions first, then those that name two things; the answer's token included."""
LONG = ("compare", "spatial")
BINS = 16
GROUND_AFTER = 2
HEADS = {"shape": len(SHAPES) + 1, "colour": len(COLOURS) + 1, "size": len(SIZES) + 1, "middle": 2,
         "x": BINS, "y": BINS, "row": 0, "column": 0}  # fmt: skip
GROUND = {"x": BINS, "y": BINS, "shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES)}
RELATION = {"right of": 3, "below": 3, "larger": 3, "more": 3}
"""For questions that name two things: is the second to the first less, much the same, or more so?"""
NONE = -100


def plain_attention(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):  # type: ignore[no-untyped-def]
    """Matrix products and a softmax, on CPU faster than SDPA at these sizes. Causal modules get the slots."""
    if not getattr(module, "is_causal", False):
        weights = torch.softmax(query @ key.transpose(-1, -2) * scaling, -1, dtype=torch.float32).to(value.dtype)
        return (weights @ value).transpose(1, 2), None
    slots = sum(n * length for n, length in SLOTS)
    images = query.shape[2] - slots
    image_key, image_value = key[:, :, :images].transpose(-1, -2), value[:, :, :images]
    scores = query @ image_key * scaling
    out = []
    start = images
    future = torch.full((images, images), float("-inf"), device=query.device).triu(1)
    weights = torch.softmax(scores[:, :, :images] + future, -1, dtype=torch.float32).to(value.dtype)
    out.append(weights @ image_value)
    for n, length in SLOTS:
        b, h, _, d = query.shape
        part = slice(start, start + n * length)
        q, k, v = (t[:, :, part].reshape(b, h, n, length, d) for t in (query, key, value))
        own = q @ k.transpose(-1, -2) * scaling + torch.full((length, length), float("-inf"), device=q.device).triu(1)
        seen = scores[:, :, part].reshape(b, h, n, length, images)
        weights = torch.softmax(torch.cat([seen, own], -1), -1, dtype=torch.float32).to(value.dtype)
        far = (weights[..., :images].reshape(b, h, n * length, images) @ image_value).reshape(b, h, n, length, d)
        out.append((far + weights[..., images:] @ v).reshape(b, h, n * length, d))
        start += n * length
    return torch.cat(out, 2).transpose(1, 2), None


class FastNorm(torch.autograd.Function):
    """RMSNorm in bf16 with few passes over memory: the library's fp32 one was a fifth of a step on CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = (norm * norm / x.shape[-1] + eps).rsqrt().to(x.dtype)
        unit = x * inverse
        weight = weight.to(x.dtype)
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        unit, inverse, weight = ctx.saved_tensors
        along = grad * unit
        by_weight = along.reshape(-1, along.shape[-1]).sum(0, dtype=torch.float32)
        share = (along @ weight).unsqueeze(-1) / along.shape[-1]
        return (grad * weight - unit * share) * inverse, by_weight, None


def fast_norms(net: nn.Module) -> None:
    """Let the model's RMSNorms take `FastNorm` wherever a bf16 training step passes."""
    for module in net.modules():
        if isinstance(module, LlamaRMSNorm):
            module.forward = partial(_norm, module)  # type: ignore[method-assign]


def _norm(module: LlamaRMSNorm, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() and x.dtype == torch.bfloat16:
        return FastNorm.apply(x, module.weight, module.variance_epsilon)
    return LlamaRMSNorm.forward(module, x)


AttentionInterface.register("gossamer_packed", plain_attention)


def network(config: dict[str, Any]) -> LlavaForConditionalGeneration:
    """The untrained model."""
    m, words = config["model"], vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=m["vision_width"], intermediate_size=4 * m["vision_width"], num_hidden_layers=m["vision_layers"],
        num_attention_heads=m["vision_heads"], image_size=m["image"], patch_size=m["patch"], projection_dim=m["width"],
        hidden_act="gelu",
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=m["width"], intermediate_size=m["swiglu"], num_hidden_layers=m["layers"],
        num_attention_heads=m["heads"], num_key_value_heads=m["heads"], max_position_embeddings=256,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    whole = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=words.index("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default", image_seq_length=(m["image"] // m["patch"]) ** 2,
        tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    net = LlavaForConditionalGeneration(whole)
    net.set_attn_implementation("gossamer_packed")
    return net


@dataclass
class Batch:
    """Tensors of some scenes; b images, n slot tokens, r rows of supervised positions."""

    pixels: Tensor
    """(b, 3, h, w) float, -1..1"""
    tokens: Tensor
    """(b, n) int64"""
    asked: Tensor
    """(q, 3): image, position of the last question token among the slot tokens, answer's token"""
    kinds: list[str]
    ground: Tensor
    """(g, 7): image, position of the noun, then the labels in the order of `GROUND`"""
    counts: Tensor
    """(c, 3): image, position of a group's noun, how many there are"""
    relations: Tensor
    """(r, 6): image, position of the second noun, then the labels in the order of `RELATION`"""
    patches: Tensor
    """(b, patches, heads) labels in the order of `HEADS`, `NONE` where there is nothing to say"""


@dataclass
class Reader:
    """Turns scenes into batches."""

    image: int
    patch: int
    words: dict[str, int] = field(default_factory=lambda: {w: i for i, w in enumerate(vocabulary())})

    def pixels(self, scenes: list[Scene]) -> Tensor:
        """As the saved image processor makes them: (v / 255 - 0.5) / 0.5."""
        stack = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
        return stack.float().div_(127.5).sub_(1.0)

    def patches(self, s: Scene) -> np.ndarray:
        """Labels of each patch: the object that covers most of it (a sixth at least), its middle, the patch's place."""
        side, p = self.image // self.patch, self.patch
        n = len(s.objects)
        cover = (s.owner[None] == np.arange(n, dtype=np.int8)[:, None, None]).reshape(n, side, p, side, p).sum((2, 4))
        who = np.where(cover.max(0) * 6 >= p * p, cover.argmax(0), n)
        table = np.array(
            [object_labels(s, i) for i in range(n)] + [(len(SHAPES), len(COLOURS), len(SIZES), NONE, NONE)]
        )
        labels = table[who]
        middle = np.zeros((side, side), dtype=np.int64)
        for o in s.objects:
            x, y = o.centre
            middle[int(y) // p, int(x) // p] = 1
        row, column = np.indices((side, side))
        whole = np.concatenate(
            [labels[..., :3], middle[..., None], labels[..., 3:], row[..., None], column[..., None]], axis=-1
        )
        return whole.reshape(side * side, -1)

    def batch(self, scenes: list[Scene], ask: bool = True) -> Batch:
        """The scenes with their questions (none if not `ask`)."""
        n = sum(count * length for count, length in SLOTS)
        tokens = np.zeros((len(scenes), n), dtype=np.int64)
        asked, kinds, ground, counts, relations = [], [], [], [], []
        for b, s in enumerate(scenes if ask else []):
            free = [list(range(SLOTS[0][0])), list(range(SLOTS[1][0]))]
            labels = [object_labels(s, i) for i in range(len(s.objects))]
            for q in questions(s):
                group = int(q.kind in LONG)
                if not free[group]:
                    continue
                slot = free[group].pop(0)
                start = slot * SLOTS[0][1] if group == 0 else SLOTS[0][0] * SLOTS[0][1] + slot * SLOTS[1][1]
                ids = [self.words[w] for w in q.text.split()]
                answer = self.words[q.answer]
                tokens[b, start : start + len(ids)] = ids
                tokens[b, start + len(ids)] = answer
                asked.append((b, start + len(ids) - 1, answer))
                kinds.append(q.kind)
                words = q.text.split()
                groups = group_sizes(words, s)
                counts += [(b, start + place, n) for place, n in groups]
                if q.kind in LONG:
                    pair = relation(s, *(number for _, number in q.referents)) if q.referents else (NONE,) * 3
                    more = 1 + (groups[1][1] > groups[0][1]) - (groups[1][1] < groups[0][1]) if groups else NONE
                    relations.append((b, start + len(words) - 2, *pair, more))
                for place, number in q.referents:
                    shape, colour, size, x, y = labels[number]
                    ground.append((b, start + place, x, y, shape, colour, size))
        patches = np.stack([self.patches(s) for s in scenes])
        return Batch(
            self.pixels(scenes), torch.from_numpy(tokens), torch.tensor(asked).reshape(-1, 3), kinds,
            torch.tensor(ground).reshape(-1, 7), torch.tensor(counts).reshape(-1, 3),
            torch.tensor(relations).reshape(-1, 2 + len(RELATION)), torch.from_numpy(patches),
        )  # fmt: skip


def group_sizes(words: list[str], s: Scene) -> list[tuple[int, int]]:
    """(position of the noun, number of objects) of the groups that "how many" and "more ... than" name."""
    if words[0] == "how":
        spans = [(2, len(words) - 1)]
    elif "more" in words:
        spans = [(3, words.index("than")), (words.index("than") + 1, len(words) - 1)]
    else:
        return []
    out = []
    for low, high in spans:
        names = {w for w in words[low:high] if w != "objects"}
        n = sum(all(name in (o.colour, o.shape + "s", o.shape + "es") for name in names) for o in s.objects)
        out.append((high - 1, n))
    return out


def relation(s: Scene, first: int, second: int) -> tuple[int, int, int]:
    """Labels of the second object against the first: right of, below, larger; 0 less, 1 much the same, 2 more so."""
    a, b = s.objects[first], s.objects[second]
    near = 3 * s.width / 64
    way = [1 + (q - p > near) - (p - q > near) for p, q in zip(a.centre, b.centre, strict=True)]
    size = SIZES.index(b.size) - SIZES.index(a.size)
    return way[0], way[1], 1 + (size > 0) - (size < 0)


def object_labels(s: Scene, i: int) -> tuple[int, int, int, int, int]:
    """Shape, colour, size, and the bins of the middle (x, y)."""
    o = s.objects[i]
    x, y = o.centre
    return (
        SHAPES.index(o.shape), COLOURS.index(o.colour), SIZES.index(o.size),
        int(x * BINS // s.width), int(y * BINS // s.width),
    )  # fmt: skip


class Trained(nn.Module):
    """The model and the auxiliary heads."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.net = network(config)
        fast_norms(self.net)
        m = config["model"]
        side = m["image"] // m["patch"]
        self.patch_sizes = [n or side for n in HEADS.values()]
        self.patch_heads = nn.Sequential(nn.LayerNorm(m["width"]), nn.Linear(m["width"], sum(self.patch_sizes)))
        self.ground_heads = nn.Sequential(nn.LayerNorm(m["width"]), nn.Linear(m["width"], sum(GROUND.values())))
        self.count_heads = nn.Sequential(nn.LayerNorm(m["width"]), nn.Linear(m["width"], len(NUMBERS)))
        self.relation_heads = nn.Sequential(nn.LayerNorm(m["width"]), nn.Linear(m["width"], sum(RELATION.values())))
        images = side * side
        positions = [torch.arange(images)]
        positions += [images + torch.arange(length).repeat(n) for n, length in SLOTS]
        self.register_buffer("positions", torch.cat(positions)[None], persistent=False)

    def see(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, w) -> (b, image tokens, width), as the language model sees them."""
        model = self.net.model
        states = model.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        return model.multi_modal_projector(states[:, 1:])

    def read(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states of the slot tokens, (b, n, width) each: after `GROUND_AFTER` layers, after all layers but
        one, and after the last norm."""
        language = self.net.model.language_model
        x = torch.cat([image, language.embed_tokens(tokens).to(image.dtype)], 1)
        rotary = language.rotary_emb(x, self.positions)
        states = []
        for layer in language.layers:
            x = layer(x, attention_mask=None, position_ids=self.positions, position_embeddings=rotary)
            states.append(x[:, image.shape[1] :])
        return states[GROUND_AFTER - 1], states[-2], language.norm(x)[:, image.shape[1] :]


def _split_loss(logits: Tensor, labels: Tensor, sizes: list[int]) -> Tensor:
    """Mean over the heads of the cross-entropy; logits (..., sum of sizes), labels (..., heads)."""
    total = logits.new_zeros(())
    for i, part in enumerate(logits.float().split(sizes, -1)):
        total = total + F.cross_entropy(part.reshape(-1, part.shape[-1]), labels[..., i].reshape(-1), ignore_index=NONE)
    return total / len(sizes)


class VlmJob:
    """See `loop.Job`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.model = Trained(config)
        self.reader = Reader(config["model"]["image"], config["model"]["patch"])
        self.pool = ThreadPoolExecutor(config["data"]["parts"])

    def loss(self, step: int, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        data = self.config["data"]
        alone = step < data["tower_steps"]
        if alone:
            n, first = data["tower_batch"], step * data["tower_batch"]
        else:
            n = batch_size
            first = data["tower_steps"] * data["tower_batch"] + (step - data["tower_steps"]) * batch_size
        first += self.config["seed"] * 100_000_000
        parts = data["parts"]
        return shared_out(
            self.model, self.pool, lambda i: self.part_loss(range(first + i, first + n, parts), step), parts
        )

    def part_loss(self, numbers: range, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss on these training scenes, as it is at this step."""
        weight = self.config["loss"]
        alone = step < self.config["data"]["tower_steps"]
        batch = self.reader.batch([scene("train", i) for i in numbers], ask=not alone)
        where = self.model.positions.device
        with torch.autocast(where.type, dtype=torch.bfloat16):
            image = self.model.see(batch.pixels.to(where))
            patch = _split_loss(self.model.patch_heads(image), batch.patches.to(where), self.model.patch_sizes)
            if alone:
                return patch, {"patch": patch.item()}
            middle, late, last = self.model.read(image, batch.tokens.to(where))
            b, place, answer = batch.asked.to(where).T
            logits = self.model.net.lm_head(last[b, place]).float()
            end = F.cross_entropy(self.model.net.lm_head(last[b, place + 1]).float(), torch.full_like(answer, 2))
            answered = F.cross_entropy(logits, answer)
            ground = batch.ground.to(where)
            found = self.model.ground_heads(middle[ground[:, 0], ground[:, 1]])
            grounded = _split_loss(found, ground[:, 2:], list(GROUND.values()))
            total = answered + weight["end"] * end + weight["patch"] * patch + weight["ground"] * grounded
            if step >= weight["relation_from"]:
                counts, relations = batch.counts.to(where), batch.relations.to(where)
                counted = self.model.count_heads(middle[counts[:, 0], counts[:, 1]]).float()
                related = self.model.relation_heads(late[relations[:, 0], relations[:, 1]])
                total = total + weight["relation"] * (
                    F.cross_entropy(counted, counts[:, 2])
                    + _split_loss(related, relations[:, 2:], list(RELATION.values()))
                )
        right = (logits.argmax(-1) == answer).float().mean()
        return total, {
            "answer": answered.item(), "patch": patch.item(), "ground": grounded.item(), "right": right.item(),
        }  # fmt: skip

    @torch.no_grad()
    def answers(self, split: str, limit: int, blank: bool = False, first: int = 0) -> list[tuple[str, str, str]]:
        """(kind, truth, given) of every question about scenes first..first+limit-1, packed, in fp32."""
        words = vocabulary()
        where = self.model.positions.device
        rows: list[tuple[str, str, str]] = []
        for start in range(first, first + limit, 32):
            batch = self.reader.batch([scene(split, i) for i in range(start, min(start + 32, first + limit))])
            pixels = torch.full_like(batch.pixels, 75 / 127.5 - 1) if blank else batch.pixels
            _, _, last = self.model.read(self.model.see(pixels.to(where)), batch.tokens.to(where))
            b, place, answer = batch.asked.to(where).T
            given = self.model.net.lm_head(last[b, place]).argmax(-1)
            rows += [
                (k, words[t], words[g]) for k, t, g in zip(batch.kinds, answer.tolist(), given.tolist(), strict=True)
            ]
        return rows

    def evaluate(self, limit: int) -> dict[str, float]:
        rows = self.answers("val", limit)
        share = {k: float(np.mean([t == g for kind, t, g in rows if kind == k])) for k in KINDS}
        share["mean_of_kinds"] = float(np.mean(list(share.values())))
        share["all"] = float(np.mean([t == g for _, t, g in rows]))
        return share

    def export(self, directory: Path) -> None:
        from vlm_card import export

        export(self, directory)

    def card(self, directory: Path) -> str:
        from vlm_card import card

        return card(self, directory)


def build(config: dict[str, Any]) -> VlmJob:
    """The job of a config of kind `vlm`."""
    return VlmJob(config)
