"""tiny-ovd: an OWLv2 detector trained from nothing on rendered scenes, with text queries.

Each object is matched to one patch (Hungarian: class, box and distance), the class loss is focal over text queries
(42 colour-shape pairs, 8 colours, 6 shapes), the box loss L1 and GIoU. The pairs of `HELD_OUT_PAIRS` are in no
training picture and no training query; they measure how the text tower composes words it knows.
"""

from __future__ import annotations

import contextlib
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2TextConfig,
    Owlv2VisionConfig,
)
from transformers.image_transforms import center_to_corners_format

from gossamer.data.scenes import COLOURS, HELD_OUT_PAIRS, PAIRS, QUERY, SHAPES, Scene, coco, scene, targets
from halves import shared_out
from vlm import HEADS, Reader, _split_loss

SEEN = tuple(p for p in PAIRS if p not in HELD_OUT_PAIRS)
WORDS = ("<pad>", "<bos>", "<unk>", "a", "an", "object", *COLOURS, *SHAPES, "<eos>")
"""The tokenizer's words in order; OWLv2 pools the text at the highest number, so <eos> is last."""
LENGTH = 8


def query(colour: str | None, shape: str | None) -> str:
    """The text of a query: a pair, a colour alone ("red object") or a shape alone."""
    return QUERY.format(colour=colour, shape=shape) if colour and shape else shape or f"{colour} object"


TRAIN_QUERIES = [query(*p) for p in SEEN] + [query(c, None) for c in COLOURS] + [query(None, s) for s in SHAPES]
TEST_QUERIES = [query(*p) for p in PAIRS]


def tokens(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Token numbers and mask, (queries, LENGTH) int64 each, as the saved tokenizer gives them."""
    ids = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    for row, text in zip(ids, texts, strict=True):
        known = ["<bos>", *text.lower().split(), "<eos>"]
        row[: len(known)] = torch.tensor([WORDS.index(w) if w in WORDS else 2 for w in known])
    return ids, (ids > 0).long()


def network(config: dict[str, Any]) -> Owlv2ForObjectDetection:
    """The untrained model, its heads initialised so that training starts sanely (the library's start at std 1)."""
    m = config["model"]
    vision = Owlv2VisionConfig(
        hidden_size=m["vision_width"], intermediate_size=4 * m["vision_width"], num_hidden_layers=m["vision_layers"],
        num_attention_heads=m["vision_heads"], image_size=m["image"], patch_size=m["patch"], hidden_act="gelu",
    )  # fmt: skip
    text = Owlv2TextConfig(
        vocab_size=len(WORDS), hidden_size=m["text_width"], intermediate_size=4 * m["text_width"],
        num_hidden_layers=m["text_layers"], num_attention_heads=m["text_heads"], max_position_embeddings=LENGTH,
        hidden_act="gelu", pad_token_id=0, bos_token_id=1, eos_token_id=len(WORDS) - 1,
    )  # fmt: skip
    net = Owlv2ForObjectDetection(
        Owlv2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=m["text_width"])
    )
    for head in (net.class_head, net.box_head, net.objectness_head):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    for layer, bias in ((net.class_head.logit_scale, 9.0), (net.class_head.logit_shift, -0.5)):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    nn.init.zeros_(net.box_head.dense2.weight)
    net.box_head.dense2.bias.data[2:] = 0.5
    net.objectness_head.dense2.bias.data.fill_(-3.0)
    return net


class Trained(nn.Module):
    """The detector and the auxiliary patch heads."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.net = network(config)
        m = config["model"]
        self.side = m["image"] // m["patch"]
        self.patch_sizes = [n or self.side for n in HEADS.values()]
        self.patch_heads = nn.Linear(m["vision_width"], sum(self.patch_sizes))
        self.register_buffer("device_of", torch.zeros(()), persistent=False)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The feature map (b, side, side, width) and the same as (b, patches, width)."""
        grid, _ = self.net.image_embedder(pixels)
        return grid, grid.flatten(1, 2)

    def read(self, texts: list[str]) -> Tensor:
        """(queries, width) embeddings of the queries."""
        ids, mask = (t.to(self.device_of.device) for t in tokens(texts))
        pooled = self.net.owlv2.text_model(input_ids=ids, attention_mask=mask).pooler_output
        embeds = self.net.owlv2.text_projection(pooled)
        return embeds / torch.linalg.norm(embeds, dim=-1, keepdim=True)

    def find(self, pixels: Tensor, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (b, patches, queries), boxes (b, patches, 4) as middle and size 0..1, patch features."""
        grid, feats = self.see(pixels)
        logits, _ = self.net.class_predictor(feats, self.read(texts)[None].expand(len(pixels), -1, -1))
        return logits.float(), self.net.box_predictor(feats, grid).float(), feats


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of corner boxes, broadcast, -1..1."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return inter / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Sum of the sigmoid focal loss (alpha 0.25, gamma 2)."""
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    right = p * wanted + (1 - p) * (1 - wanted)
    return (ce * (1 - right) ** 2 * (0.25 * wanted + 0.75 * (1 - wanted))).sum()


def query_rows(labels: np.ndarray) -> np.ndarray:
    """(objects, 3): the numbers in `TRAIN_QUERIES` that an object of each class answers to."""
    pairs = [PAIRS[i] for i in labels]
    return np.array(
        [(SEEN.index(p), len(SEEN) + COLOURS.index(p[0]), len(SEEN) + len(COLOURS) + SHAPES.index(p[1])) for p in pairs]
    )


class OvdJob:
    """See `loop.Job`."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.model = Trained(config)
        self.size = config["model"]["image"]
        self.reader = Reader(self.size, config["model"]["patch"])
        self.pool = ThreadPoolExecutor(config["data"]["parts"])
        side = self.model.side
        row, column = np.indices((side, side))
        self.middles = (np.stack([column, row], -1).reshape(-1, 2) + 0.5) / side

    def match(self, logits: Tensor, boxes: Tensor, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """The patch of each object of one picture: (objects,) int."""
        p = logits.sigmoid().numpy()[:, rows[:, 0]]
        far = np.abs(boxes.numpy()[:, None] - wanted[None]).sum(-1)
        a, b = center_to_corners_format(boxes), center_to_corners_format(torch.from_numpy(wanted))
        overlap = giou(a[:, None], b[None]).numpy()
        off = np.abs(self.middles[:, None] - wanted[None, :, :2]).max(-1) * self.model.side
        cost = -p + 2 * far - overlap + 2 * np.maximum(off - 0.5, 0)
        patch, which = linear_sum_assignment(cost)
        return patch[np.argsort(which)]

    def loss(self, step: int, batch_size: int) -> tuple[Tensor, dict[str, float]]:
        data = self.config["data"]
        alone = step < data["tower_steps"]
        n = data["tower_batch"] if alone else batch_size
        first = step * n if alone else data["tower_steps"] * data["tower_batch"] + (step - data["tower_steps"]) * n
        first += self.config["seed"] * 100_000_000
        parts = data["parts"]
        return shared_out(
            self.model, self.pool, lambda i: self.part_loss(range(first + i, first + n, parts), alone), parts
        )

    def part_loss(self, numbers: range, alone: bool) -> tuple[Tensor, dict[str, float]]:
        """The loss on these training scenes, without the held-out pairs; `alone`: of the vision tower only."""
        weight = self.config["loss"]
        scenes = [scene("train", i, size=self.size, exclude=HELD_OUT_PAIRS) for i in numbers]
        where = self.model.device_of.device
        pixels = self.reader.pixels(scenes).to(where)
        known = torch.from_numpy(np.stack([self.reader.patches(s) for s in scenes])).to(where)
        with torch.autocast(where.type, dtype=torch.bfloat16):
            if alone:
                patch = _split_loss(self.model.patch_heads(self.model.see(pixels)[1]), known, self.model.patch_sizes)
                return patch, {"patch": patch.item()}
            logits, boxes, feats = self.model.find(pixels, TRAIN_QUERIES)
            patch = _split_loss(self.model.patch_heads(feats), known, self.model.patch_sizes)
            objectness = self.model.net.objectness_predictor(feats).float()
        free_logits, free_boxes = logits.detach().cpu(), boxes.detach().cpu()
        wanted, present = torch.zeros_like(logits), torch.zeros_like(objectness)
        image, place, truth = [], [], []
        for i, s in enumerate(scenes):
            labels, middle = targets(s)
            rows = query_rows(labels)
            at = self.match(free_logits[i], free_boxes[i], rows, middle)
            wanted[i, torch.from_numpy(at)[:, None], torch.from_numpy(rows)] = 1
            present[i, torch.from_numpy(at)] = 1
            image += [i] * len(at)
            place += at.tolist()
            truth.append(middle)
        count = len(image)
        found, right = boxes[image, place], torch.from_numpy(np.concatenate(truth)).to(where)
        classes = focal(logits, wanted) / count
        away = (found - right).abs().sum(-1).mean()
        overlap = giou(center_to_corners_format(found), center_to_corners_format(right)).mean()
        thing = F.binary_cross_entropy_with_logits(objectness, present, reduction="sum") / count
        total = classes + weight["box"] * away + weight["giou"] * (1 - overlap)
        total = total + weight["objectness"] * thing + weight["patch"] * patch
        return total, {
            "class": classes.item(), "l1": away.item(), "giou": overlap.item(), "objectness": thing.item(),
            "patch": patch.item(),
        }  # fmt: skip

    @torch.no_grad()
    def detections(self, scenes: list[Scene], blank: bool = False) -> list[dict[str, Any]]:
        """COCO results, one a patch (its best query of all 48), as the saved processor's post-processing gives."""
        where = self.model.device_of.device
        out = []
        for start in range(0, len(scenes), 50):
            part = scenes[start : start + 50]
            pixels = self.reader.pixels(part).to(where)
            logits, boxes, _ = self.model.find(
                torch.full_like(pixels, 75 / 127.5 - 1) if blank else pixels, TEST_QUERIES
            )
            score, label = logits.sigmoid().max(-1)
            corners = center_to_corners_format(boxes) * self.size
            for s, sc, la, bo in zip(part, score.tolist(), label.tolist(), corners.tolist(), strict=True):
                for p, c, (x0, y0, x1, y1) in zip(sc, la, bo, strict=True):
                    if p > 0.01:
                        box = [x0, y0, x1 - x0, y1 - y0]
                        out.append({"image_id": s.index, "category_id": c, "bbox": box, "score": p})
        return out

    def ap(self, split: str, limit: int, blank: bool = False) -> dict[str, float]:
        """AP50 and AP over all, the seen and the held-out pairs, on `limit` scenes that hold all 48 pairs."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        scenes = [scene(split, i, size=self.size) for i in range(limit)]
        results = self.detections(scenes, blank)
        held = [PAIRS.index(p) for p in HELD_OUT_PAIRS]
        groups = {
            "seen": [i for i in range(len(PAIRS)) if i not in held],
            "held_out": held,
            "all": list(range(len(PAIRS))),
        }
        values = {}
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = coco(scenes)
            truth.createIndex()
            guess = truth.loadRes(results) if results else None
            for name, categories in groups.items():
                if guess is None:
                    values[f"ap50_{name}"] = values[f"ap_{name}"] = 0.0
                    continue
                run = COCOeval(truth, guess, "bbox")
                run.params.catIds = categories
                run.evaluate()
                run.accumulate()
                run.summarize()
                values[f"ap50_{name}"], values[f"ap_{name}"] = float(run.stats[1]), float(run.stats[0])
        return values

    def evaluate(self, limit: int) -> dict[str, float]:
        return self.ap("val", limit)

    def export(self, directory: Path) -> None:
        from ovd_card import export

        export(self, directory)

    def card(self, directory: Path) -> str:
        from ovd_card import card

        return card(self, directory)


def build(config: dict[str, Any]) -> OvdJob:
    """The job of a config of kind `ovd`."""
    return OvdJob(config)
