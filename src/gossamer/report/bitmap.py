"""The bit map of a plan: for each modality a grid of its blocks by its layers, shaded by bits."""

from collections.abc import Sequence

from gossamer.core.units import format_bytes
from gossamer.report.markup import el, line, table, text
from gossamer.report.schema import LayerChoice

_SCALE = ((232, 244, 246), (52, 146, 163), (5, 48, 60))
_STEPS = (2, 3, 4, 5, 6, 7, 8, 16)
_MANY = 20


def bit_map(layers: Sequence[LayerChoice]) -> str:
    """HTML of the whole map: one grid for each modality with blocks, one strip for the layers outside them."""
    modalities: dict[str, list[LayerChoice]] = {}
    for layer in layers:
        modalities.setdefault(layer.path.split(".", 1)[0], []).append(layer)
    pieces = [_legend(sorted({layer.bits for layer in layers if layer.weight_bytes}))]
    loose: list[LayerChoice] = []
    for name, members in modalities.items():
        inside = [layer for layer in members if _place(layer) is not None]
        loose += [layer for layer in members if _place(layer) is None]
        if inside:
            pieces.append(_grid(name, inside))
    if loose:
        pieces.append(_strip(loose))
    return el("div", *pieces, class_="bitmap")


def _place(layer: LayerChoice) -> tuple[int, str] | None:
    """(block number, layer name inside the block) of `MODALITY.blocks.N.REST`, None outside blocks."""
    parts = layer.path.split(".", 3)
    return (int(parts[2]), parts[3]) if len(parts) == 4 and parts[1] == "blocks" and parts[2].isdigit() else None


def _grid(name: str, layers: Sequence[LayerChoice]) -> str:
    cells = {place: layer for layer in layers if (place := _place(layer)) is not None}
    blocks = sorted({block for block, _ in cells})
    parts = list(dict.fromkeys(part for _, part in cells))
    lines = [line(text(part), *(_cell(cells.get((block, part))) for block in blocks)) for part in parts]
    kind = "bits dense" if len(blocks) > _MANY else "bits"
    return table(["block", *map(str, blocks)], lines, kind, _caption(name, layers))


def _strip(layers: Sequence[LayerChoice]) -> str:
    lines = [
        line(text(layer.path), _cell(layer), el("td", format_bytes(layer.weight_bytes), class_="size"))
        for layer in layers
    ]
    return table([], lines, "bits", _caption("outside the blocks", layers))


def _caption(name: str, layers: Sequence[LayerChoice]) -> str:
    weights = sum(layer.parameters for layer in layers if layer.weight_bytes)
    size = sum(layer.weight_bytes for layer in layers)
    mean = f", {8 * size / weights:.2f} bits per weight as stored" if weights else ""
    return el("caption", text(name), " ", el("span", format_bytes(size) + mean))


def _cell(layer: LayerChoice | None) -> str:
    if layer is None:
        return el("td", class_="none")
    if not layer.weight_bytes:
        return el("td", "tied", class_="none", title=f"{layer.path}: shares another layer's tensor")
    hint = f"{layer.path}: {layer.choice}, {format_bytes(layer.weight_bytes)}"
    return el("td", str(layer.bits), style=_paint(layer.bits), title=hint)


def _paint(bits: int) -> str:
    """Background by bits on one scale from 2 to 16, text in black or white, whichever stands out more."""
    depth = 2 * _STEPS.index(bits) / (len(_STEPS) - 1) if bits in _STEPS else min(2.0, bits / 8)
    low, high = _SCALE[min(1, int(depth))], _SCALE[min(1, int(depth)) + 1]
    depth -= min(1, int(depth))
    shade = [round(start + (end - start) * depth) for start, end in zip(low, high, strict=True)]
    light = _luminance(shade)
    white = 1.05 / (light + 0.05) > (light + 0.05) / (_luminance((17, 22, 31)) + 0.05)
    return f"background:rgb({','.join(map(str, shade))});color:{'#fff' if white else '#11161f'}"


def _luminance(colour: Sequence[int]) -> float:
    """Relative luminance as WCAG defines it, 0 (black) to 1 (white)."""
    linear = [c / 12.92 if (c := value / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for value in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _legend(widths: Sequence[int]) -> str:
    return el("p", "bits per weight ", *(el("i", str(bits), style=_paint(bits)) for bits in widths), class_="legend")
