# ruff: noqa: E501
"""Export and model card of a tiny-vlm: every number in the card is measured here, on the exported files."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from gossamer.data.scenes import KINDS, PROMPT, SPLITS, questions, scene, vocabulary

if TYPE_CHECKING:
    from vlm import VlmJob

TEST_SCENES = 1500
SINGLE_SCENES = 25


def tokenizer() -> PreTrainedTokenizerFast:
    """Words split at spaces and before "?", lower-cased; token numbers are places in `vocabulary()`."""
    words = vocabulary()
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[?.,!]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"}, padding_side="left", model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def processor(config: dict[str, Any]) -> LlavaProcessor:
    """Image and text processing; works without torchvision."""
    side = config["model"]["image"]
    images = CLIPImageProcessorPil(
        size={"height": side, "width": side}, crop_size={"height": side, "width": side},
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer(), patch_size=config["model"]["patch"],
        vision_feature_select_strategy="default", num_additional_image_tokens=1, image_token="<image>",
    )  # fmt: skip


def export(job: VlmJob, directory: Path) -> None:
    """The model in float16, without auxiliary heads, the processor, and gossamer.json."""
    from vlm import network

    net = network(job.config)
    net.load_state_dict(job.model.net.state_dict())
    net.set_attn_implementation("sdpa")
    net = net.half()
    g = net.generation_config
    g.bos_token_id, g.eos_token_id, g.pad_token_id, g.max_new_tokens, g.do_sample = 1, 2, 0, 2, False
    net.save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    processor(job.config).save_pretrained(directory)
    about = {"task": "vqa", "prompt": PROMPT, "data": "scenes", "image_size": job.config["model"]["image"]}
    (directory / "gossamer.json").write_text(json.dumps(about, indent=1) + "\n")


def wilson(right: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of right / n, in percent."""
    if not n:
        return 0.0, 100.0
    z, p = 1.959963984540054, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, 100 * (middle - half) / (1 + z * z / n)), min(100.0, 100 * (middle + half) / (1 + z * z / n))


def load_exported(job: VlmJob, directory: Path) -> None:
    """Put the exported (rounded) weights into the job, in fp32."""
    net = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    job.model.net.load_state_dict(net.state_dict())
    job.model.eval()


@torch.no_grad()
def one_by_one(directory: Path, scenes: int) -> list[tuple[str, str, str]]:
    """(kind, truth, given) through AutoProcessor, the exported model in its own dtype, and generate, one at a time."""
    net = AutoModelForImageTextToText.from_pretrained(directory).eval()
    read = AutoProcessor.from_pretrained(directory)
    rows = []
    for i in range(scenes):
        s = scene("test", i)
        for q in questions(s):
            inputs = read(text=PROMPT.format(question=q.text), images=s.image, return_tensors="pt")
            inputs["pixel_values"] = inputs["pixel_values"].to(net.dtype)
            out = net.generate(**inputs, max_new_tokens=1, do_sample=False)
            rows.append((q.kind, q.answer, read.tokenizer.decode(out[0, -1:]).strip()))
    return rows


def _share(rows: Iterable[tuple[str, str, str]]) -> tuple[int, int]:
    rows = list(rows)
    return sum(t == g for _, t, g in rows), len(rows)


def measure(job: VlmJob, directory: Path) -> dict[str, Any]:
    """All of the card's numbers: the test split packed, blank images, the majority answer, and the one-by-one check."""
    load_exported(job, directory)
    seen = job.answers("test", TEST_SCENES)
    blank = job.answers("test", TEST_SCENES, blank=True)
    single = one_by_one(directory, SINGLE_SCENES)
    packed = seen[: len(single)]
    groups = {**{k: [k] for k in KINDS}, "yes/no (exist, compare, spatial)": ["exist", "compare", "spatial"],
              "all but spatial": [k for k in KINDS if k != "spatial"], "all": list(KINDS)}  # fmt: skip
    table = {}
    for name, kinds in groups.items():
        right, n = _share(r for r in seen if r[0] in kinds)
        common = 0
        for kind in kinds:
            common += max(Counter(t for k, t, _ in seen if k == kind).values(), default=0)
        low, high = wilson(right, n)
        dark = _share(r for r in blank if r[0] in kinds)
        table[name] = {
            "n": n, "accuracy_percent": 100 * right / n, "low": low, "high": high,
            "blank_percent": 100 * dark[0] / n, "majority_percent": 100 * common / n,
        }  # fmt: skip
    return {
        "table": table,
        "mean_of_kinds_percent": sum(table[k]["accuracy_percent"] for k in KINDS) / len(KINDS),
        "scenes": TEST_SCENES,
        "single": {"n": len(single), "same_answer": sum(a == b for a, b in zip(single, packed, strict=True)),
                   "right": _share(single)[0]},
        "parameters": sum(p.numel() for p in job.model.net.parameters()),
        "bytes": sum(f.stat().st_size for f in directory.glob("*.safetensors")),
    }  # fmt: skip


def card(job: VlmJob, directory: Path) -> str:
    """README.md of the exported model; the numbers go to metrics.json too. `training.json` must be there."""
    m = measure(job, directory)
    (directory / "metrics.json").write_text(json.dumps(m, indent=1) + "\n")
    run = json.loads((directory / "training.json").read_text())
    c = job.config
    joint = max(0, run["steps"] - c["data"]["tower_steps"])
    name = directory.name.removesuffix(".new")
    rows = "\n".join(
        f"| {k} | {v['n']} | {v['accuracy_percent']:.1f} | {v['low']:.1f} – {v['high']:.1f} "
        f"| {v['blank_percent']:.1f} | {v['majority_percent']:.1f} |"
        for k, v in m["table"].items()
    )
    unfinished = "" if run["steps"] >= run["steps_planned"] else (
        f"\n**Not trained to the end:** {run['steps']} of {run['steps_planned']} planned steps.\n"
    )  # fmt: skip
    notes = f"- {c['notes']}\n" if c.get("notes") else ""
    return f"""# {name}

`LlavaForConditionalGeneration`, {m["parameters"]:,} parameters, {m["bytes"]:,} bytes in float16. It answers questions
about the rendered scenes of `gossamer.data.scenes` (64 × 64 pixels) with one word. Trained from random weights.
{unfinished}
Prompt: `{PROMPT}`, for example `{PROMPT.format(question="is there a red circle ?")}`; the answer is the next token.

```python
from transformers import AutoModelForImageTextToText, AutoProcessor
from gossamer.data.scenes import PROMPT, questions, scene
model, processor = AutoModelForImageTextToText.from_pretrained(PATH), AutoProcessor.from_pretrained(PATH)
s = scene("test", 0)
q = questions(s)[0]
inputs = processor(text=PROMPT.format(question=q.text), images=s.image, return_tensors="pt").to(model.dtype)
print(q.text, processor.tokenizer.decode(model.generate(**inputs, max_new_tokens=1)[0, -1:]), q.answer)
```

## Measured on the test split

{m["scenes"]} scenes (`scene("test", 0..{m["scenes"] - 1})`), every question of `questions(scene)`; the exported weights, computed in
float32, all questions of an image packed into one sequence. Percent right with the 95 % Wilson interval (questions of
one image are not independent, so the true interval is somewhat wider). *Blank*: the picture replaced by even grey (75).
*Majority*: always the most frequent answer of the kind.

| questions | n | right % | 95 % interval | blank % | majority % |
|---|---|---|---|---|---|
{rows}

Mean of the {len(KINDS)} kinds: **{m["mean_of_kinds_percent"]:.1f} %**. Kinds differ in hardness (counting and spatial relations are learnt last), so read the rows, not only the mean.

One question a sequence through `AutoProcessor` and `generate`, in float16: {m["single"]["same_answer"]} of {m["single"]["n"]} answers as in the
packed run ({SINGLE_SCENES} scenes; {m["single"]["right"]} right).

## Training

- Data: `scene("train", i)` with its questions: {c["data"]["tower_batch"] * min(run["steps"], c["data"]["tower_steps"]):,} scenes for the vision tower alone, then {joint * c["batch"]:,} scenes
  with questions, each seen once. Splits ({", ".join(SPLITS)}) differ in their seeds. The validation split was watched; the test split was not.
- {run["steps"]} steps (batch {c["batch"]}), AdamW {c["betas"]}, lr {c["lr"]}, warm-up {c["warmup"]}, cosine, weight decay {c["weight_decay"]}, seed {c["seed"]}.
- Loss: answer + {c["loss"]["end"]} × end token + {c["loss"]["patch"]} × patch labels (shape, colour, size, middle, place of the object, row, column)
  + {c["loss"]["ground"]} × grounding (a noun's state after language layer {min(2, c["model"]["layers"] - 1)} tells its object's place and look). The extra heads are not shipped.
- From step {c["loss"]["relation_from"]} on also {c["loss"]["relation"]} × (how many a group's noun names, after layer 2; how the second of two things lies to the first, after the last layer but one).
- Wall time {run["elapsed_s"] / 60:.0f} minutes on {run["device"]}, {c["data"]["parts"]} threads at most, the machine shared with other work; torch {run["torch"]}.
{notes}
Reproduce: `{run["command"]}`; only the numbers above: the same with `--export-only --card`.
"""
