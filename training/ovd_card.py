# ruff: noqa: E501
"""Export and model card of tiny-ovd: every number in the card is measured here, on the exported files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, Owlv2Processor, PreTrainedTokenizerFast
from transformers.models.owlv2.image_processing_pil_owlv2 import Owlv2ImageProcessorPil

from gossamer.data.scenes import HELD_OUT_PAIRS, QUERY, scene

if TYPE_CHECKING:
    from ovd import OvdJob

TEST_SCENES = 1000
SINGLE_SCENES = 20


def tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cased words between <bos> and <eos>."""
    from ovd import LENGTH, WORDS

    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", len(WORDS) - 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        model_max_length=LENGTH, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def export(job: OvdJob, directory: Path) -> None:
    """The model in float16, without auxiliary heads, the processor, and gossamer.json."""
    from ovd import network

    net = network(job.config)
    net.load_state_dict(job.model.net.state_dict())
    net.half().save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)
    side = job.config["model"]["image"]
    images = Owlv2ImageProcessorPil(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    Owlv2Processor(image_processor=images, tokenizer=tokenizer()).save_pretrained(directory)
    about = {"task": "detection", "data": "scenes", "query": QUERY, "image_size": side,
             "held_out": [" ".join(p) for p in HELD_OUT_PAIRS]}  # fmt: skip
    (directory / "gossamer.json").write_text(json.dumps(about, indent=1) + "\n")


@torch.no_grad()
def through_processor(job: OvdJob, directory: Path) -> dict[str, float]:
    """The largest differences between the saved model behind its processor (fp32) and the job's own evaluation."""
    from ovd import TEST_QUERIES

    net = AutoModelForZeroShotObjectDetection.from_pretrained(directory, dtype=torch.float32).eval()
    read = AutoProcessor.from_pretrained(directory)
    worst = {"logit": 0.0, "box": 0.0}
    for i in range(SINGLE_SCENES):
        s = scene("test", i, size=job.size)
        inputs = read(text=[TEST_QUERIES], images=s.image, return_tensors="pt")
        out = net(**inputs)
        logits, boxes, _ = job.model.find(job.reader.pixels([s]), TEST_QUERIES)
        worst["logit"] = max(worst["logit"], (out.logits - logits).abs().max().item())
        worst["box"] = max(worst["box"], (out.pred_boxes - boxes).abs().max().item())
    return worst


def measure(job: OvdJob, directory: Path) -> dict[str, Any]:
    """All of the card's numbers, on the exported weights in fp32."""
    net = AutoModelForZeroShotObjectDetection.from_pretrained(directory, dtype=torch.float32)
    job.model.net.load_state_dict(net.state_dict())
    job.model.eval()
    return {
        "test": job.ap("test", TEST_SCENES), "blank": job.ap("test", TEST_SCENES, blank=True), "scenes": TEST_SCENES,
        "through_processor": through_processor(job, directory),
        "parameters": sum(p.numel() for p in net.parameters()),
        "bytes": sum(f.stat().st_size for f in directory.glob("*.safetensors")),
    }  # fmt: skip


def card(job: OvdJob, directory: Path) -> str:
    """README.md of the exported model; the numbers go to metrics.json too. `training.json` must be there."""
    m = measure(job, directory)
    (directory / "metrics.json").write_text(json.dumps(m, indent=1) + "\n")
    run = json.loads((directory / "training.json").read_text())
    c, side = job.config, job.size
    tower = min(run["steps"], c["data"]["tower_steps"])
    rows = "\n".join(
        f"| {words} | {m['test'][f'ap50_{k}']:.3f} | {m['test'][f'ap_{k}']:.3f} | {m['blank'][f'ap50_{k}']:.3f} |"
        for k, words in (("seen", "42 pairs trained"), ("held_out", "6 pairs held out"), ("all", "all 48"))
    )
    unfinished = "" if run["steps"] >= run["steps_planned"] else (
        f"\n**Not trained to the end:** {run['steps']} of {run['steps_planned']} planned steps.\n"
    )  # fmt: skip
    notes = f"- {c['notes']}\n" if c.get("notes") else ""
    return f"""# {directory.name.removesuffix(".new")}

`Owlv2ForObjectDetection`, {m["parameters"]:,} parameters, {m["bytes"]:,} bytes in float16. It finds coloured shapes by text
("{QUERY.format(colour="red", shape="circle")}", "red object", "circle") in the rendered scenes of `gossamer.data.scenes`, {side} × {side} pixels. Trained from random weights.
{unfinished}
```python
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
from gossamer.data.scenes import scene
model, processor = AutoModelForZeroShotObjectDetection.from_pretrained(PATH), AutoProcessor.from_pretrained(PATH)
s, queries = scene("test", 0, size={side}), ["red circle", "blue square"]
out = model(**processor(text=[queries], images=s.image, return_tensors="pt").to(model.dtype))
print(processor.post_process_grounded_object_detection(out, threshold=0.3, target_sizes=[({side}, {side})], text_labels=[queries]))
```

## Measured on the test split

{m["scenes"]} scenes (`scene("test", 0..{m["scenes"] - 1}, size={side})`, all 48 colour-shape pairs occur), 48 text queries at once, one detection a patch as the
processor's post-processing gives, pycocotools; the exported weights, computed in float32. Point values, one seed.

| categories | AP50 | AP | AP50, blank picture |
|---|---|---|---|
{rows}

Held out, in no picture or query of the detector's training: {", ".join(" ".join(p) for p in HELD_OUT_PAIRS)}.
Through `AutoProcessor` and the saved model the logits differ by at most {m["through_processor"]["logit"]:.1e}, the boxes by {m["through_processor"]["box"]:.1e} ({SINGLE_SCENES} scenes).

## Training

- Data: `scene("train", i, size={side}, exclude=HELD_OUT_PAIRS)`: {tower * c["data"]["tower_batch"]:,} scenes for the vision tower alone, then {(run["steps"] - tower) * c["batch"]:,} for detection.
- {run["steps"]} steps (batch {c["batch"]}), AdamW {c["betas"]}, lr {c["lr"]}, warm-up {c["warmup"]}, cosine, weight decay {c["weight_decay"]}, seed {c["seed"]}.
- Loss: focal over 56 text queries + {c["loss"]["box"]} × L1 + {c["loss"]["giou"]} × (1 − GIoU) after Hungarian matching + {c["loss"]["objectness"]} × objectness + {c["loss"]["patch"]} × patch labels (heads not shipped).
- Wall time {run["elapsed_s"] / 60:.0f} minutes on {run["device"]}, {c["data"]["parts"]} threads at most, the machine shared with other work; torch {run["torch"]}.
{notes}
Reproduce: `{run["command"]}`; only the numbers above: the same with `--export-only --card`.
"""
