"""The Verilog of these tests."""

from pathlib import Path

from gossamer.eda.design import Design

RTL = Path(__file__).parent / "rtl"


def mac(**parameters: int | str) -> Design:
    """Multiply and accumulate: parameters W, ACC and BUG."""
    return Design([RTL / "mac.v"], "mac", parameters)


def fifo(**parameters: int | str) -> Design:
    """A queue: parameters W, AW and BUG."""
    return Design([RTL / "fifo.v"], "fifo", parameters)


def written(folder: Path, text: str, top: str = "top", **parameters: int | str) -> Design:
    """A design in a file of its own."""
    file = folder / "top.v"
    file.write_text(text)
    return Design([file], top, parameters)
