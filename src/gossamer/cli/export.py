"""`gossamer export`: a run's checkpoint, ready to ship."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gossamer.cli.options import Json, Out
from gossamer.cli.terminal import Result, figures, job, line, notes, quantity, show

EXAMPLE = "gossamer export runs/tiny-vlm --out tiny-vlm-small"


class Format(StrEnum):
    """What a checkpoint is shipped as."""

    compressed_tensors = "compressed-tensors"
    gguf = "gguf"
    openvino = "openvino"


Source = Annotated[
    str,
    typer.Argument(
        metavar="RUN", show_default=False, help="A run folder that optimize wrote; for gguf and openvino any model."
    ),
]
FormatOption = Annotated[
    Format,
    typer.Option(
        "--format",
        help="A directory for transformers and vLLM, one .gguf file for llama.cpp, or a directory of OpenVINO graphs.",
    ),
]


def command(source: Source, out: Out, form: FormatOption = Format.compressed_tensors, as_json: Json = False) -> None:
    """Copy a run's checkpoint, ready to ship, or write it as a GGUF file or OpenVINO graphs.

    Plain transformers (and vLLM) load the directory, llama.cpp the file. File and graphs keep the codes of quantised
    layers; they are read back and compared before they are put in place.
    """
    with job() as progress:
        if form is Format.gguf:
            from gossamer.search.export import export_gguf_job

            result = export_gguf_job(source, out, progress)
        elif form is Format.openvino:
            from gossamer.search.export_openvino import export_openvino_job

            result = export_openvino_job(source, out)
        else:
            from gossamer.search.jobs import export_job

            result = export_job(Path(source), out)
    show(result, as_json, draw)


def draw(result: Result) -> None:
    """Prints where the checkpoint, file or folder is, and its figures."""
    if "types" in result:
        figures("Exported", result["measured"])
        line(f"parity: {quantity('', result['parity'])}")
        line("tensors: " + ", ".join(f"{count} {kind}" for kind, count in result["types"].items()))
        notes(result)
        where = "file" if "file" in result else "folder"
        line(f"{where}: {result[where]}")
        return
    size = result.get("measured", {}).get("weight_bytes")
    line(f"checkpoint: {result['checkpoint']}" + (f", {quantity('weight_bytes', size)}" if size else ""))
