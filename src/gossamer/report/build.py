"""Building `report.html`: one file that holds everything and asks the network for nothing."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gossamer.core.described import fault
from gossamer.core.errors import DataError
from gossamer.core.files import write_text
from gossamer.report import charts, sections, words
from gossamer.report.bitmap import bit_map
from gossamer.report.document import chart, document, section
from gossamer.report.markup import el, text
from gossamer.report.samples import samples
from gossamer.report.schema import Result


def write_report(run_dir: Path, result: Result | Mapping[str, Any]) -> Path:
    """Writes the report of `result` into the run folder and returns its path.

    The same result always gives the same bytes. Raises `DataError` naming the field if `result` does not fit
    `schema.Result`, `OutputError` where the folder cannot be written.
    """
    checked = result if isinstance(result, Result) else _checked(result)
    path = run_dir / checked.report
    write_text(path, page(run_dir, checked))
    return path


def page(run_dir: Path, result: Result) -> str:
    """The report as HTML. Files that `result` names (plan, images) are read relative to `run_dir`."""
    body = "".join(_sections(run_dir, result))
    title = f"{words.title(result)} compressed by Gossamer"
    return document(title, f"{sections.headline(result)}{body}{_FOOTER}")


def _sections(run_dir: Path, result: Result) -> Iterator[str]:
    yield section("compare", "Before and after", "", sections.comparison(result))
    if result.notes:
        yield section("notes", "What to know", "", sections.notes(result.notes))
    if result.pareto:
        intro = (
            "The plans found, beside the same setting for all layers. Lower left is better, bars are 95 % intervals. "
            f"Loss is {result.pareto_loss}."
        )
        yield section("pareto", "Loss against size", intro, chart("pareto-chart", charts.pareto(result)))
    if result.layers:
        intro = "What the chosen plan does to every layer. Fewer bits went where the model minds least."
        yield section("bits", "Bits of the chosen plan", intro, bit_map(result.layers))
    if result.sensitivity:
        intro = (
            "How far the output moves when one unit alone is quantised and all else stays at 16 bits. Each thin line "
            "is a unit, darker towards the last block; the black line is their median. Point at a line for its name."
        )
        drawn = chart("sensitivity-chart", charts.sensitivity(result.sensitivity))
        yield section("sensitivity", "Sensitivity", intro, drawn)
    if result.additivity and result.additivity.points:
        intro = "The allocation adds the losses of single units. Whole plans were measured to see how well that holds."
        drawn = chart("additivity-chart", charts.additivity(result.additivity))
        facts = sections.additivity_text(result.additivity)
        yield section("additivity", "Do the losses add up?", intro, el("div", drawn, el("div", facts), class_="split"))
    if result.samples:
        yield section("samples", "Answers before and after", "", samples(result.samples, run_dir))
    yield section("provenance", "How this was made", "", _provenance(run_dir, result))


def _provenance(run_dir: Path, result: Result) -> str:
    pieces = []
    if result.command:
        pieces.append(el("pre", text(result.command)))
    if result.data:
        pieces.append(sections.data_table(result.data))
    where: dict[str, Any] = {"checkpoint": result.checkpoint, "plan": result.plan, "model": result.model.fingerprint}
    pieces.append(sections.facts_table({**where, **result.environment}))
    if result.task.protocol:
        protocol = sections.facts_table(result.task.protocol)
        pieces.append(el("details", el("summary", "How quality was measured"), protocol))
    plan = result.plan_yaml or _text(run_dir / result.plan)
    if plan:
        pieces.append(el("details", el("summary", "The plan"), el("pre", text(plan))))
    return "".join(pieces)


_FOOTER = (
    "<footer>Ratios are against the same model at 16 bits. Figures marked estimate come from a model of the device, "
    "all others were measured. Bytes are counted as stored, scales and padding included.</footer>"
)


def _checked(result: Mapping[str, Any]) -> Result:
    try:
        return Result.model_validate(result)
    except ValidationError as error:
        raise DataError(f"the result cannot be reported: {fault(error)}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
