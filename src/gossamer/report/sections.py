"""The report's written sections as HTML: headline, before/after table, additivity, notes, provenance."""

import json
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from gossamer.core.units import format_bytes
from gossamer.report import words
from gossamer.report.markup import el, line, table, text
from gossamer.report.schema import Additivity, DataUse, Note, Result

_QUARTILES = "median and quartiles after warm-up"
_NOTE_NAMES = {"guard": "Never worse", "warning": "Warning", "container": "Container", "note": "Note"}


def headline(result: Result) -> str:
    """The sentence, and the requirements with what was found."""
    tiles = [
        el("div", el("dt", text(name)), el("dd", text(value)), el("p", text(verdict)), class_=f"tile {state}".strip())
        for name, value, verdict, state in _tiles(result)
    ]
    model = result.model
    kind = f"{model.family} ({model.architecture})" if model.architecture else model.family
    about = f"{kind} · {model.parameters:,} parameters · {model.fingerprint[:19]}…"
    return el(
        "header",
        el("p", "Gossamer", class_="brand"),
        el("h1", text(words.title(result))),
        el("p", text(about), class_="about"),
        el("p", text(words.summary(result)), class_="summary"),
        el("dl", *tiles, class_="tiles"),
    )


def _tiles(result: Result) -> Iterator[tuple[str, str, str, str]]:
    """(name, value, verdict, class) of the stated requirements, the divergence and the parity of the export."""
    size, limit = result.measured.get("weight_bytes"), result.budget.weight_bytes
    if size is not None:
        met = limit is None or size.value <= limit
        place = "within" if met else "over"
        verdict = "no byte budget" if limit is None else f"{place} the budget of {format_bytes(limit)}"
        yield "Weights", format_bytes(size.value), verdict, "" if met else "missed"
    for key, most in result.budget.estimated().items():
        found = result.estimated.get(key)
        if found is not None:
            place, state = ("within", "") if found <= most else ("over", "missed")
            verdict = f"estimate, {place} the {words.show(key, most)} allowed"
            yield words.name_of(key), words.show(key, found), verdict, state
    fall, floor = words.loss_percent(result), result.budget.max_loss_percent
    if fall is not None:
        met = floor is None or fall <= floor
        better = result.task.higher_is_better
        unit = "points" if better else "%"
        verdict = "no quality floor"
        if floor is not None:
            allowed = f"{floor:g} {'point' if better and floor == 1 else unit}"
            verdict = f"{'within' if met else 'beyond'} the {allowed} allowed"
        name = f"{'Loss' if better else 'Rise'} of {words.name_of(result.task.metric).lower()}"
        yield name, f"{words.signed(fall, 2).removeprefix('+')} {unit}", verdict, "" if met else "missed"
    kl = result.measured.get("kl")
    if kl is not None:
        yield "KL from 16 bits", words.show("kl", kl.value), words.interval("kl", kl) or f"n {kl.n:,}", ""
    yield "Export parity", words.power(result.parity), "largest logit difference after plain reload", ""


def comparison(result: Result) -> str:
    """The before/after table with intervals; estimates are marked."""
    uniform = result.uniform
    label = (uniform.label if uniform else "") or "best uniform setting"
    middle = [text(label[:1].upper() + label[1:])] if uniform else []
    lines = []
    for row in words.rows(result):
        name = text(row.name) + (" " + el("em", "estimate", class_="mark") if row.estimated else "")
        cells = [_figure(row.before, row.before_interval), _figure(row.after, row.after_interval, strong=True)]
        if uniform:
            cells.append(_figure(row.uniform, row.uniform_interval))
        spread = el("small", text(row.change_interval)) if row.change_interval else ""
        lines.append(line(name, *cells, el("td", text(row.change), spread, class_="change")))
    same = " The uniform setting takes no more bytes than the compressed model." if uniform else ""
    about = f"Change is the compressed model against the baseline.{same}{_methods(result)}{_cost(result)}"
    return table(["", "16-bit baseline", "Compressed", *middle, "Change"], lines, "compare") + el(
        "p", text(about), class_="small"
    )


def _methods(result: Result) -> str:
    """How the intervals were made: 95 % ones, and the quartiles of times."""
    ways = dict.fromkeys(measure.method for measure in result.measured.values() if measure.method != "exact")
    times = [way.removeprefix(_QUARTILES).lstrip() for way in ways if way.startswith(_QUARTILES)]
    others = sorted(way for way in ways if not way.startswith(_QUARTILES))
    said = f" Intervals are 95 %: {'; '.join(others)}." if others else ""
    if times:
        said += f" Times are medians with quartiles after warm-up, both models in turn, {'; '.join(times)}"
        said += "; their change is the median over pairs of runs."
    return said


def _cost(result: Result) -> str:
    """What the job itself took."""
    spent = [] if result.seconds is None else [words.duration(result.seconds)]
    if result.peak_memory_bytes is not None:
        spent.append(f"{format_bytes(result.peak_memory_bytes)} of memory at its peak")
    return f" The job took {' and '.join(spent)}." if spent else ""


def _figure(value: str, interval: str, strong: bool = False) -> str:
    if not value:
        return el("td", el("span", "not measured", class_="none"))
    shown = el("b", text(value)) if strong else text(value)
    return el("td", shown, el("small", text(interval)) if interval else "")


def additivity_text(check: Additivity) -> str:
    """The check in numbers: how many plans, the median ratio, the rank agreement."""
    ratios = [point.measured / point.predicted for point in check.points if point.predicted > 0]
    if not ratios:
        return ""
    facts = {
        "Plans measured whole": f"{len(check.points)}",
        "Measured / predicted, median": f"{median(ratios):.2f}",
        "Measured / predicted, range": f"{min(ratios):.2f} {words.DASH} {max(ratios):.2f}",
    }
    rank = _rank_correlation([(point.predicted, point.measured) for point in check.points])
    if rank is not None:
        facts["Rank correlation"] = f"{rank:.2f}".replace("-", words.MINUS)
    return facts_table(facts) + el("p", text(f"{check.unit}. A ratio of 1 is exact additivity."), class_="small")


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's, or None where there are too few points or no spread."""
    from scipy.stats import spearmanr

    if len(pairs) < 3 or any(len({pair[side] for pair in pairs}) == 1 for side in (0, 1)):
        return None
    return float(spearmanr([x for x, _ in pairs], [y for _, y in pairs]).statistic)


def notes(items: Sequence[Note]) -> str:
    """What the reader must know, the guard's outcome first."""
    order = list(_NOTE_NAMES)
    ranked = sorted(items, key=lambda note: order.index(note.kind))
    lines = [
        el("li", el("b", _NOTE_NAMES[note.kind]), el("span", text(note.text)), class_=note.kind) for note in ranked
    ]
    return el("ul", *lines, class_="notes")


def data_table(uses: Sequence[DataUse]) -> str:
    """Which data were used for what, so that a reader sees that the final test was not searched on."""
    columns = {
        "Data": [text(use.name) for use in uses],
        "Split": [text(use.split) for use in uses],
        "Examples": [f"{use.n:,}" for use in uses],
        "Seed": ["" if use.seed is None else str(use.seed) for use in uses],
        "SHA-256": [_digest(use.sha256) for use in uses],
        "Settings": [text(_plain(use.settings)) for use in uses],
    }
    filled = {name: cells for name, cells in columns.items() if any(cells)}
    numeric = {"Examples": "number", "Seed": "number"}
    lines = [
        line(text(use.role), *(el("td", cells[index], class_=numeric.get(name)) for name, cells in filled.items()))
        for index, use in enumerate(uses)
    ]
    heads = [el("span", name, class_=numeric.get(name)) for name in filled]
    return table(["Used for", *heads], lines, "data")


def _digest(sha256: str) -> str:
    return el("code", text(sha256.removeprefix("sha256:")[:12]), title=sha256) if sha256 else ""


def facts_table(facts: Mapping[str, Any]) -> str:
    """Name and value, one line each."""
    lines = [line(text(str(name)), el("td", text(_plain(value)))) for name, value in facts.items()]
    return table([], lines, "facts")


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value, default=str)
