"""Arguments and options that mean the same in every verb."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gossamer.core.units import parse_bytes, parse_percent, parse_ratio


class Granularity(StrEnum):
    """What the search gives one setting to."""

    auto = "auto"
    layer = "layer"
    block = "block"


class Technique(StrEnum):
    """What carries a plan out (see docs/compression.md)."""

    gptq = "gptq"
    gptaq = "gptaq"
    qronos = "qronos"
    signround = "signround"


class Search(StrEnum):
    """How a plan is found."""

    exact = "exact"
    evolution = "evolution"
    tiered = "tiered"


class Transform(StrEnum):
    """What is done to the model before the search, without changing its function (see docs/compression.md)."""

    none = "none"
    rotate = "rotate"
    smoothquant = "smoothquant"
    awq = "awq"


class Runtime(StrEnum):
    """What is to run the result (see docs/search.md)."""

    transformers = "transformers"
    vllm = "vllm"
    llama_cpp = "llama.cpp"
    openvino = "openvino"


class DraftRule(StrEnum):
    """How several drafts are verified (see docs/operation.md)."""

    kseq = "kseq"
    recursive = "recursive"


class EngineName(StrEnum):
    """What runs a model that writes (see docs/engine.md)."""

    auto = "auto"
    native = "native"
    torch = "torch"


class Effort(StrEnum):
    """How much is tried and measured."""

    quick = "quick"
    standard = "standard"
    thorough = "thorough"


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A directory, a hub id, a .gguf or llama2.c .bin file, or an embedded model such as tiny-vlm.",
    ),
]
ModelOrRun = Annotated[
    str,
    typer.Argument(metavar="MODEL", show_default=False, help="As elsewhere, or a run folder: its checkpoint."),
]
Task = Annotated[
    str | None,
    typer.Option(metavar="TASK", help="text, vqa, detection or classification; by default the model's own task."),
]
Data = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="A file, a directory, or a built-in set such as scenes; by default the model's."),
]
TestData = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Data for the final figures only; by default a split of --data."),
]
On = Annotated[
    str, typer.Option("--on", metavar="DEVICE", help="Where the work is done: cpu, or cuda for a GPU at hand.")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        show_default=False,
        help="Measure candidates on a Ray cluster: HOST:PORT, auto, or local to start one here.",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Use at most N examples.")]
Meters = Annotated[
    bool, typer.Option("--meters", help="Also measure latency of the model's stages and memory of its weights.")
]
Memory = Annotated[
    int | None,
    typer.Option(
        parser=parse_bytes,
        metavar="SIZE",
        show_default=False,
        help="Bytes the exported weights may take, such as 3MB or 512KiB, scales and padding included.",
    ),
]
Ratio = Annotated[
    float | None,
    typer.Option(
        parser=parse_ratio,
        metavar="SHARE",
        show_default=False,
        help="The same limit as a share of the 16-bit size, such as 0.3 or 30%.",
    ),
]
PeakMemory = Annotated[
    int | None,
    typer.Option(
        parser=parse_bytes,
        metavar="SIZE",
        show_default=False,
        help="Estimated bytes of weights, cache of --context tokens and activations together.",
    ),
]
Latency = Annotated[
    float | None,
    typer.Option(metavar="MS", show_default=False, help="Estimated milliseconds of a token (or example) on --device."),
]
Energy = Annotated[
    float | None,
    typer.Option(metavar="MJ", show_default=False, help="Estimated millijoules of the same."),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", show_default=False, help="A device preset such as laptop-cpu, or a YAML file."),
]
Context = Annotated[
    int | None,
    typer.Option(metavar="TOKENS", show_default="2048", help="Tokens in the cache in those estimates."),
]
MaxLoss = Annotated[
    float | None,
    typer.Option(
        parser=parse_percent,
        metavar="PERCENT",
        show_default=False,
        help="How far quality may fall behind the unchanged model, such as 1%. Not met: exit code 1.",
    ),
]
Out = Annotated[
    Path, typer.Option(metavar="DIR", show_default=False, help="Where the results go. Replaced only when complete.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", show_default=False, help="A run folder that optimize wrote.")]
Seed = Annotated[int, typer.Option(min=0, help="Of every random choice: equal seeds give equal results.")]
Engine = Annotated[
    EngineName,
    typer.Option(help="native: packed weights as they are; torch: transformers' code; auto: the fastest that runs it."),
]
Kv = Annotated[
    str | None,
    typer.Option(
        metavar="POLICY[:SETTING=VALUE,…]",
        show_default=False,
        help="Keep less of past tokens, as streaming:budget=512,bits=8, or all: none; see docs/operation.md.",
    ),
]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", show_default="all cores", help="Processor threads to use.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; do and write nothing.")]
GranularityOption = Annotated[Granularity, typer.Option(help="What gets a setting of its own.")]
TechniqueOption = Annotated[Technique, typer.Option(help="What carries the chosen plan out.")]
SearchOption = Annotated[Search, typer.Option(help="How the plan is found; others are compared with exact.")]
TransformOption = Annotated[Transform, typer.Option(help="Done to the model first; its function stays.")]
RuntimeOption = Annotated[Runtime, typer.Option(help="What is to run the result; no other formats are used.")]
EffortOption = Annotated[Effort, typer.Option(help="How much is tried and measured.")]
