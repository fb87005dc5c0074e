"""Plots of an exploration of engines: the points, the chosen one's area, its units over time."""

from collections.abc import Mapping, Sequence
from typing import Any

from gossamer.core.units import format_bytes
from gossamer.report.charts import ACCENT, GREY, INK, LINE, MUTED, axis, blank_figure, log_range

_SCALE = [[0.0, "#bad8de"], [0.5, "#3f93a3"], [1.0, "#12343b"]]
_KINDS = ("#00697c", "#7fb5bf", "#c98a2b", "#8a94a3", "#a3341f", "#5b7f3a", "#6f5a8c", "#d2b48c", "#1c2330", "#4d8fd1")
_GATES, _MEMORIES = "#7fb5bf", "#d9dfe6"

Point = Mapping[str, Any]


def front(points: Sequence[Point], budget: Mapping[str, float]) -> dict[str, Any]:
    """Area against latency, both logarithmic, energy as colour; those on the front large, the chosen one in a ring."""
    figure = blank_figure(height=460)
    layout = figure["layout"]
    layout["xaxis"] = _log("latency, ms", [point["latency_ms"] for point in points])
    layout["yaxis"] = _log("area, mm²", [point["area_mm2"] for point in points])
    layout["margin"]["r"] = 90
    most, least = (extreme(point["energy_mj"] for point in points) for extreme in (max, min))
    color = {"cmin": least, "cmax": most, "colorscale": _SCALE}
    bar = {"title": {"text": "energy, mJ"}, "thickness": 12, "outlinewidth": 0}
    for best, size in ((False, 6), (True, 12)):
        some = [point for point in points if point["pareto"] is best]
        marker = {**color, "size": size, "color": [point["energy_mj"] for point in some], "opacity": 1 if best else 0.6}
        marker |= {"symbol": ["diamond" if point["bits"] == 4 else "circle" for point in some]}
        marker |= {"line": {"color": INK if best else GREY, "width": 1 if best else 0}, "showscale": best}
        figure["data"].append(_points(some, marker | ({"colorbar": bar} if best else {})))
    ring = {"symbol": "circle-open", "size": 24, "color": INK, "line": {"width": 2}}
    figure["data"].append(_points([point for point in points if point["chosen"]], ring))
    for name, edge in (("latency_ms", "x"), ("area_mm2", "y")):
        if name in budget:
            other = "y" if edge == "x" else "x"
            line = {"type": "line", edge + "0": budget[name], edge + "1": budget[name], other + "0": 0, other + "1": 1}
            line |= {"xref": "x" if edge == "x" else "paper", "yref": "y" if edge == "y" else "paper"}
            layout["shapes"].append({**line, "line": {"color": MUTED, "width": 1, "dash": "dash"}})
    return figure


def _points(points: Sequence[Point], marker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "showlegend": False, "marker": dict(marker),
        "x": [point["latency_ms"] for point in points], "y": [point["area_mm2"] for point in points],
        "text": [
            f"{point['rows']} × {point['columns']} × {point['depth']}, {point['lanes']} lanes, {point['bits']} bits<br>"
            f"{format_bytes(point['sram_bytes'])}, {point['energy_mj']:.3g} mJ, "
            f"{point['utilisation_percent']:.0f} % of the multipliers in use"
            for point in points
        ],
        "hovertemplate": "%{text}<br>%{x:.3g} ms, %{y:.3g} mm²<extra></extra>",
    }  # fmt: skip


def _log(title: str, values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis over values that may span less than a decade: Plotly's own ticks."""
    return axis(title, type="log", range=list(log_range(values)))


def floorplan(areas: Mapping[str, float]) -> dict[str, Any]:
    """The engine's area (µm² by unit; memories are what ends in "memory" or "memories") as tiles of that size."""
    figure = blank_figure(height=460)
    figure["layout"]["margin"] = {"l": 0, "r": 0, "t": 4, "b": 4}
    parts = {name: area / 1e6 for name, area in areas.items() if area > 0}
    memories = [name for name in parts if name.endswith(("memory", "memories"))]
    gates = [name for name in parts if name not in memories]
    labels, parents, values, colors = [], [], [], []
    for group, names, color in (("memories", memories, _MEMORIES), ("gates", gates, _GATES)):
        if names:
            labels += [group, *names]
            parents += ["", *([group] * len(names))]
            values += [sum(parts[name] for name in names), *(parts[name] for name in names)]
            colors += ["#ffffff", *([color] * len(names))]
    figure["data"] = [{
        "type": "treemap", "labels": labels, "parents": parents, "values": values, "branchvalues": "total",
        "ids": [f"{parent}/{label}" if parent else label for label, parent in zip(labels, parents, strict=True)],
        "marker": {"colors": colors, "line": {"color": "#fff", "width": 2}}, "pathbar": {"visible": False},
        "texttemplate": "%{label}<br>%{value:.2f} mm²", "textfont": {"color": INK, "size": 13},
        "hovertemplate": "%{label}<br>%{value:.3f} mm², %{percentRoot:.1%} of the engine<extra></extra>",
        "tiling": {"packing": "squarify", "pad": 2},
    }]  # fmt: skip
    return figure


def utilisation(bars: Sequence[Mapping[str, Any]], cycles: int) -> dict[str, Any]:
    """What each unit does from cycle to cycle: a bar for steps that follow each other, coloured by kind."""
    figure = blank_figure(height=330)
    layout = figure["layout"]
    layout["xaxis"] = axis("cycles", range=[0, cycles], type="linear")
    layout["yaxis"] = axis("", categoryorder="array", categoryarray=["store", "load", "compute"], type="category")
    layout |= {"barmode": "overlay", "bargap": 0.25, "showlegend": True}
    layout["legend"] = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "font": {"size": 12}}
    kinds = list(dict.fromkeys(bar["kind"] for bar in bars))
    for number, kind in enumerate(kinds):
        some = [bar for bar in bars if bar["kind"] == kind]
        figure["data"].append({
            "type": "bar", "orientation": "h", "name": kind, "y": [bar["unit"] for bar in some],
            "base": [bar["start"] for bar in some], "x": [bar["end"] - bar["start"] for bar in some],
            "marker": {"color": _KINDS[number % len(_KINDS)], "line": {"color": LINE, "width": 0}},
            "text": [f"{bar['steps']} steps, busy {bar['busy']:,} of" for bar in some], "textposition": "none",
            "hovertemplate": kind + " from %{base:,}<br>%{text} %{x:,} cycles<extra></extra>",
        })  # fmt: skip
    figure["data"].append({  # keeps all three rows where a unit has nothing to do
        "type": "bar", "orientation": "h", "y": ["store", "load", "compute"], "x": [0, 0, 0], "showlegend": False,
        "hoverinfo": "skip", "marker": {"color": ACCENT},
    })  # fmt: skip
    return figure
