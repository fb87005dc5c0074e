"""`gossamer report`: a run's page, rebuilt from its results."""

from gossamer.cli.options import Json, Run
from gossamer.cli.terminal import Result, job, line, show

EXAMPLE = "gossamer report runs/tiny-vlm"


def command(run: Run, as_json: Json = False) -> None:
    """Rebuild a run's report.html.

    Made from the result.json of the run folder; nothing is measured again.
    """
    with job():
        from gossamer.report.build import write_report
        from gossamer.search.jobs import read_result

        result = {"report": str(write_report(run, read_result(run)))}
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints where the page is."""
    line(f"report: {result['report']}")
