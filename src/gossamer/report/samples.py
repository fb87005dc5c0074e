"""Sample answers before and after, with their images and boxes."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from gossamer.report.markup import el, text
from gossamer.report.schema import Box, Sample

_EDGE = 480


def samples(items: Sequence[Sample], run: Path) -> str:
    """Cards with the image, the question, and the answers. Image paths are relative to the run folder `run`."""
    return el("div", *(_card(item, run) for item in items), class_="samples")


def _card(item: Sample, run: Path) -> str:
    detection = bool(item.boxes_before or item.boxes_after)
    answers = "" if item.expected is None else el("dt", "expected") + el("dd", text(item.expected))
    for name, answer, right in (
        ("before", item.before, item.before_right),
        ("after", item.after, item.after_right),
    ):
        if answer or not detection:
            answers += el("dt", name) + el("dd", _judged(answer, right))
    content = (_pictures(item, run), el("p", text(item.prompt), class_="prompt"), el("dl", answers))
    return el("article", *content, class_="sample wide" if detection or item.image is None else "sample")


def _judged(answer: str, right: bool | None) -> str:
    if right is None:
        return text(answer)
    return text(answer) + " " + el("span", "✓ right" if right else "✗ wrong", class_="right" if right else "wrong")


def _pictures(item: Sample, run: Path) -> str:
    if item.image is None:
        return ""
    loaded = _image(item.image, run)
    if loaded is None:
        return el("p", text(f"image {Path(item.image).name} cannot be read"), class_="small")
    uri, width, height = loaded
    if not (item.boxes_before or item.boxes_after):
        return f'<img src="{uri}" alt="" width="{width}" height="{height}">'
    image = f'<image href="{uri}" width="{width}" height="{height}"/>'
    view = f"0 0 {width} {height}"
    figures = []
    for name, boxes in (("before", item.boxes_before), ("after", item.boxes_after)):
        drawn = "".join(_box(box, width) for box in boxes)
        # viewBox keeps its capital: `el` passes names through
        drawing = el("svg", image, drawn, viewBox=view, role="img", aria_label=f"{len(boxes)} boxes {name}")
        figures.append(el("figure", drawing, el("figcaption", f"{name}, {len(boxes)} found")))
    return el("div", *figures, class_="pair")


def _box(box: Box, width: int) -> str:
    size = width / 24
    label = box.label if box.score is None else f"{box.label} {box.score:.2f}"
    place = {"x": f"{box.x0:.1f}", "y": f"{box.y0:.1f}"}
    frame = el("rect", **place, width=f"{box.x1 - box.x0:.1f}", height=f"{box.y1 - box.y0:.1f}")
    above = f"{max(size, box.y0 - size / 3):.1f}"
    return frame + el("text", text(label), x=f"{box.x0:.1f}", y=above, font_size=f"{size:.1f}")


def _image(source: str, run: Path) -> tuple[str, int, int] | None:
    """(PNG as data URI, width and height of the original, which boxes refer to); None if it cannot be read."""
    from PIL import Image

    try:
        inline = source.startswith("data:image/")
        data = base64.b64decode(source.partition(",")[2]) if inline else (run / source).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            small = image.convert("RGB")
        small.thumbnail((_EDGE, _EDGE))
        buffer = io.BytesIO()
        small.save(buffer, format="PNG", optimize=True)
    except (OSError, ValueError):
        return None
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode(), width, height
