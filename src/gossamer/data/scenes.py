"""Rendered scenes of coloured shapes: the data that the embedded multimodal models are trained and measured on.

`scene(split, index)` draws one picture with its objects, boxes and captions; `questions(scene)` asks about it.

Promise of determinism: the same arguments give the same bytes and the same words on every run and machine. All
choices come from the raw output of PCG64 (a stream that NumPy guarantees), the drawing is integer arithmetic and
exact comparisons; no font, no libm function and no image library takes part.

Splits ("train", "val", "test") are disjoint because the split's number is part of every scene's seed; each is endless.

Units: images are uint8, H x W x 3, RGB, 0..255. Boxes are (x0, y0, x1, y1) in pixels, x to the right, y down, the
upper edges exclusive, the whole extent of the shape even where another object hides part of it (amodal).
"""

from gossamer.data.scenes_detection import PAIRS, QUERY, coco, targets
from gossamer.data.scenes_questions import DEFAULT, KINDS, Question, questions, vocabulary
from gossamer.data.scenes_render import (
    COLOURS,
    HELD_OUT_PAIRS,
    NUMBERS,
    SHAPES,
    SIZES,
    SPLITS,
    TEXTURES,
    Object,
    Scene,
    region,
    scene,
)

PROMPT = "<image> {question}"
"""What the processor is given as text; the model's answer is the next token, one word."""

__all__ = [
    "COLOURS",
    "DEFAULT",
    "HELD_OUT_PAIRS",
    "KINDS",
    "NUMBERS",
    "PAIRS",
    "PROMPT",
    "QUERY",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "TEXTURES",
    "Object",
    "Question",
    "Scene",
    "coco",
    "questions",
    "region",
    "scene",
    "targets",
    "vocabulary",
]
