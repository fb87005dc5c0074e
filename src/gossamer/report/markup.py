"""Writing HTML by hand without writing it by hand."""

from collections.abc import Iterable
from html import escape

text = escape
"""Plain text as HTML."""


def el(tag: str, *content: str, **attributes: str | float | None) -> str:
    """An element around `content`, which is HTML already.

    Attribute values are escaped here; `class_` gives `class`, other `_` become `-`, and None is left out.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{given}>{''.join(content)}</{tag}>"


def table(head: Iterable[str], lines: Iterable[str], class_: str, caption: str = "") -> str:
    """A table of the given header cells (HTML, may be none) and body rows (`<tr>` elements)."""
    cells = "".join(el("th", cell, scope="col") for cell in head)
    start = el("thead", el("tr", cells)) if cells else ""
    return el("table", caption, start, el("tbody", *lines), class_=class_)


def line(name: str, *cells: str) -> str:
    """A table row with a row header; `cells` are `<td>` elements."""
    return el("tr", el("th", name, scope="row"), *cells)
