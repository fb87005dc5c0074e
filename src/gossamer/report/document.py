"""A page as one file: style, scripts and data within, nothing asked of the network."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from gossamer.report.markup import el, text

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def document(title: str, main: str) -> str:
    """The page around its content, which is HTML; `chart`s in it are drawn by Plotly."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{text(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light">'
        f"<style>{_own('page.css')}</style></head>\n<body><main>{main}</main>\n"
        f"<script>{_plotly()}</script>\n<script>{_own('page.js')}</script></body></html>\n"
    )


def section(name: str, title: str, intro: str, content: str) -> str:
    """A part of the page under its title, with a sentence of what is seen."""
    return el("section", el("h2", text(title)), el("p", text(intro)) if intro else "", content, id=name) + "\n"


def chart(name: str, figure: Mapping[str, Any]) -> str:
    """A Plotly figure in JSON form, with its height in the layout."""
    data = json.dumps(figure, sort_keys=True, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    height = figure["layout"]["height"]
    return (
        f'<div class="chart" id="{name}" style="height:{height}px"></div>'
        f'<script type="application/json" data-chart="{name}">{data}</script>'
    )


def _own(name: str) -> str:
    return resources.files("gossamer.report").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    library = resources.files("plotly").joinpath("package_data", "plotly.min.js")
    return library.read_text(encoding="utf-8").replace("</script", "<\\/script")
