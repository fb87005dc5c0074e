"""The report's plots, as Plotly figures in JSON form: sensitivity curves, the Pareto front, the additivity check."""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from gossamer.core.units import format_bytes
from gossamer.report.schema import Additivity, ParetoPoint, Result, SensitivityPoint
from gossamer.report.words import decade

ACCENT, INK, MUTED, LINE, GREY = "#00697c", "#1c2330", "#566070", "#e4e8ee", "#8a94a3"
FONT = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_SHADES = ((186, 216, 222), (0, 105, 124))


def sensitivity(points: Sequence[SensitivityPoint]) -> dict[str, Any]:
    """KL against bits, one panel for each modality, one line for each unit, shaded by depth; the median in black.

    Where a width comes with several group sizes, the line goes through the best of them. Log axis; values that are
    not positive cannot be drawn on it and are left out.
    """
    modalities = list(dict.fromkeys(point.modality for point in points))
    across = len(modalities) if len(modalities) <= 4 else 3
    down = math.ceil(len(modalities) / across)
    figure = blank_figure(height=(300 if across > 2 else 360) * down + 40)
    layout = figure["layout"]
    span = log_range([point.kl for point in points])
    widths = sorted({point.bits for point in points})
    for number, modality in enumerate(modalities):
        suffix = str(number + 1) if number else ""
        row, column = divmod(number, across)
        left, right = _span(column, across, 0.055)
        bottom, top = _span(down - 1 - row, down, 0.2)
        layout[f"xaxis{suffix}"] = axis(
            "bits per weight", domain=[left, right], anchor=f"y{suffix}", tickvals=widths, type="linear",
            range=[widths[0] - 0.4, widths[-1] + 0.4],
        )  # fmt: skip
        layout[f"yaxis{suffix}"] = log_axis(
            "KL, nats" if column == 0 else "", span, domain=[bottom, top], anchor=f"x{suffix}",
            showticklabels=column == 0,
        )  # fmt: skip
        mine = [point for point in points if point.modality == modality]
        layout["annotations"].append(_caption(f"<b>{modality}</b>", left, top))
        figure["data"] += _unit_lines(mine, suffix)
    return figure


def _unit_lines(points: Sequence[SensitivityPoint], suffix: str) -> list[dict[str, Any]]:
    depth = max((point.block or 0 for point in points), default=0)
    lines: list[dict[str, Any]] = []
    curves = []
    for unit in dict.fromkeys(point.unit for point in points):
        curve = _best_by_width(point for point in points if point.unit == unit)
        curves.append(curve)
        block = curve[0].block if curve else None
        shade = 1.0 if block is None else block / depth if depth else 0.5
        lines.append({
            "type": "scatter", "mode": "lines+markers", "name": unit,
            "x": [point.bits for point in curve], "y": [point.kl for point in curve],
            "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": False,
            "line": {"color": _shade(shade), "width": 1.2}, "marker": {"size": 3},
            "text": [
                f"{point.path}<br>{point.choice}, {format_bytes(point.bytes)}<br>standard error {point.kl_stderr:.2g}"
                for point in curve
            ],
            "hovertemplate": "%{text}<br>KL %{y:.3g} nats<extra></extra>",
        })  # fmt: skip
    if len(curves) > 2:
        middle = {}
        for width in sorted({point.bits for curve in curves for point in curve}):
            middle[width] = median(point.kl for curve in curves for point in curve if point.bits == width)
        lines.append({
            "type": "scatter", "mode": "lines", "x": list(middle), "y": list(middle.values()), "name": "median",
            "xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "showlegend": False, "line": {"color": INK, "width": 2.5},
            "hovertemplate": "median of the units<br>KL %{y:.3g} nats<extra></extra>",
        })  # fmt: skip
    return lines


def _best_by_width(points: Iterable[SensitivityPoint]) -> list[SensitivityPoint]:
    best: dict[int, SensitivityPoint] = {}
    for point in points:
        if point.kl > 0 and (point.bits not in best or point.kl < best[point.bits].kl):
            best[point.bits] = point
    return [best[width] for width in sorted(best)]


def pareto(result: Result) -> dict[str, Any]:
    """Loss against bytes: the allocated front, the uniform baselines, the chosen plan and the budget line.

    The loss axis is logarithmic; a point without loss (the 16-bit model itself) has no place on it, unless no point has
    a positive loss. Hollow markers are predictions, not measurements.
    """
    positive = any(point.loss > 0 for point in result.pareto)
    points = [point for point in result.pareto if point.loss > 0 or not positive]
    figure = blank_figure(height=430)
    layout = figure["layout"]
    unit, factor = _byte_unit(max(point.weight_bytes for point in points))
    layout["xaxis"] = axis(f"weights in the checkpoint, {unit}")
    title, losses = result.pareto_loss.split(",")[0], [bound for point in points for bound in _bounds(point)]
    layout["yaxis"] = log_axis(title, log_range(losses)) if positive else axis(title)
    layout["showlegend"] = True
    layout["legend"] = {"x": 1, "xanchor": "right", "y": 1, "bgcolor": "rgba(255,255,255,0.85)", "font": {"size": 13}}
    uniform = sorted((point for point in points if point.kind == "uniform"), key=lambda point: point.weight_bytes)
    allocated = sorted((point for point in points if point.kind == "allocated"), key=lambda point: point.weight_bytes)
    chosen = [point for point in points if point.chosen]
    if uniform:
        marker = {"symbol": "diamond", "size": 9, "color": GREY, "line": {"color": GREY, "width": 1.5}}
        trace = _points(uniform, "uniform setting", factor, marker)
        labels = {"mode": "markers+text", "text": [_short(point) for point in uniform], "textposition": "top center"}
        figure["data"].append({**trace, **labels, "textfont": {"size": 11, "color": MUTED}})
    if allocated:
        marker = {"size": 8, "color": ACCENT, "line": {"color": ACCENT, "width": 1.5}}
        figure["data"] += [_front(allocated, factor), _points(allocated, "allocated plan", factor, marker)]
    if chosen:
        marker = {"symbol": "circle-open", "size": 18, "color": INK, "line": {"color": INK, "width": 2}}
        figure["data"].append({**_points(chosen, "chosen", factor, marker), "error_y": {"visible": False}})
    if result.budget.weight_bytes:
        _budget_line(layout, result.budget.weight_bytes / factor)
    return figure


def _front(points: Sequence[ParetoPoint], factor: float) -> dict[str, Any]:
    """The line through the points, sorted by bytes, that no smaller one beats."""
    best: list[ParetoPoint] = []
    for point in points:
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return {
        "type": "scatter", "mode": "lines", "name": "front", "x": [point.weight_bytes / factor for point in best],
        "y": [point.loss for point in best], "line": {"color": ACCENT, "width": 2}, "hoverinfo": "skip",
        "showlegend": False,
    }  # fmt: skip


def _points(points: Sequence[ParetoPoint], name: str, factor: float, marker: dict[str, Any]) -> dict[str, Any]:
    symbol = marker.get("symbol", "circle")
    symbols = [symbol if point.measured or symbol.endswith("-open") else f"{symbol}-open" for point in points]
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": [point.weight_bytes / factor for point in points],
        "y": [point.loss for point in points], "marker": {**marker, "symbol": symbols},
        "customdata": [
            f"<b>{point.label}</b><br>{format_bytes(point.weight_bytes)}"
            + (f", {point.bits:.2f} bits per weight" if point.bits else "")
            + ("" if point.measured else "<br>predicted, not measured")
            for point in points
        ],
        "hovertemplate": "%{customdata}<br>loss %{y:.3g}<extra></extra>",
        "error_y": {
            "type": "data", "symmetric": False, "color": marker["color"], "thickness": 1, "width": 3,
            "array": [max(0.0, _bounds(point)[1] - point.loss) for point in points],
            "arrayminus": [max(0.0, point.loss - _bounds(point)[0]) for point in points],
        },
    }  # fmt: skip


def _short(point: ParetoPoint) -> str:
    return point.label.removeprefix("uniform ").removeprefix("Uniform ")


def _bounds(point: ParetoPoint) -> tuple[float, float]:
    """The interval's ends; a lower end at or below zero is drawn at a third of the loss, since the axis has no zero."""
    low = point.loss if point.low is None else point.low
    if point.loss > 0 >= low:
        low = point.loss / 3
    return low, point.loss if point.high is None else point.high


def _budget_line(layout: dict[str, Any], place: float) -> None:
    layout["shapes"].append({
        "type": "line", "x0": place, "x1": place, "yref": "paper", "y0": 0, "y1": 1,
        "line": {"color": INK, "width": 1.2, "dash": "dash"},
    })  # fmt: skip
    layout["annotations"].append({
        "x": place, "yref": "paper", "y": 1, "yanchor": "bottom", "text": "budget", "showarrow": False,
        "font": {"size": 12, "color": INK},
    })  # fmt: skip


def additivity(check: Additivity) -> dict[str, Any]:
    """Measured against predicted loss of whole plans, with the line on which they would be equal."""
    figure = blank_figure(height=330)
    values = [value for point in check.points for value in (point.predicted, point.measured)]
    positive = all(value > 0 for value in values)
    span = log_range(values) if positive else (min(values), max(values))
    ends = [10**end for end in span] if positive else list(span)
    for name, title in (("xaxis", "sum of the units' losses"), ("yaxis", "measured")):
        figure["layout"][name] = log_axis(title, span) if positive else axis(title, range=list(span))
    figure["data"] = [
        {
            "type": "scatter", "mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip", "showlegend": False,
            "line": {"color": GREY, "width": 1.2, "dash": "dot"},
        },
        {
            "type": "scatter", "mode": "markers", "x": [point.predicted for point in check.points],
            "y": [point.measured for point in check.points], "text": [point.label for point in check.points],
            "marker": {"size": 8, "color": ACCENT}, "showlegend": False,
            "error_y": {
                "type": "data", "array": [point.stderr for point in check.points], "color": ACCENT, "thickness": 1,
            },
            "hovertemplate": "%{text}<br>predicted %{x:.3g}<br>measured %{y:.3g}<extra></extra>",
        },
    ]  # fmt: skip
    return figure


# ---------------------------------------------------------------------------------------------------- parts


def blank_figure(height: int) -> dict[str, Any]:
    """A figure in the page's style, without data."""
    return {
        "data": [],
        "layout": {
            "height": height, "margin": {"l": 70, "r": 16, "t": 34, "b": 52}, "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)", "font": {"family": FONT, "size": 13, "color": INK}, "showlegend": False,
            "hovermode": "closest", "hoverlabel": {"bgcolor": "#fff", "bordercolor": LINE, "font": {"color": INK}},
            "shapes": [], "annotations": [],
        },
    }  # fmt: skip


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """An axis in the page's style."""
    return {
        "title": {"text": title, "font": {"size": 13, "color": MUTED}, "standoff": 10}, "gridcolor": LINE,
        "zeroline": False, "linecolor": GREY, "showline": True, "ticks": "outside", "ticklen": 4, "tickcolor": GREY,
        "automargin": True, "tickfont": {"size": 12, "color": MUTED}, **settings,
    }  # fmt: skip


def log_axis(title: str, span: tuple[float, float], **settings: Any) -> dict[str, Any]:
    """A logarithmic axis over `span` (exponents of 10) with a labelled tick at every decade, or every few."""
    first, last = math.ceil(span[0]), math.floor(span[1])
    decades = range(first, last + 1, max(1, (last - first) // 6))
    ticks = {"tickvals": [10.0**power for power in decades], "ticktext": [decade(power) for power in decades]}
    return axis(title, type="log", range=list(span), **ticks, **settings)


def _caption(text: str, x: float, y: float) -> dict[str, Any]:
    return {
        "text": text, "x": x, "y": y, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom",
        "showarrow": False, "font": {"size": 14, "color": INK},
    }  # fmt: skip


def log_range(values: Iterable[float]) -> tuple[float, float]:
    """Exponents of 10 around the positive values, with some room."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    room = max(0.15, 0.06 * (high - low))
    return low - room, high + room


def _span(index: int, count: int, gap: float) -> tuple[float, float]:
    size = (1 - gap * (count - 1)) / count
    return index * (size + gap), min(1.0, index * (size + gap) + size)


def _shade(depth: float) -> str:
    first, last = _SHADES
    return "rgb({},{},{})".format(*(round(a + (b - a) * depth) for a, b in zip(first, last, strict=True)))


def _byte_unit(largest: float) -> tuple[str, float]:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if largest >= factor:
            return unit, factor
    return "B", 1.0
