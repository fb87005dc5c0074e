"""How near the engine's integer softmax, GELU and norm come to real numbers, beside I-BERT's, I-ViT's and ITA's.

Run: python benchmarks/integer_arithmetic.py [--rows 256]
Writes benchmarks/results/integer_arithmetic.json and integer_arithmetic.md.

All designs are given the same integers. Softmax: N(0, sigma) logits at 8 bits, and 64 columns of N(0, 1) values at 8
bits; the error is that of the average of the values, root mean square by that of the exact averages, before it is
rounded to the output's bits; "best 8-bit" rounds the exact probabilities to 8 bits. GELU: every 8-bit input, output at
8 bits of the same scale. Layer norm: N(0, deviation) rows of integers, results of standard deviation 1.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from gossamer.accelerator.golden.arithmetic import (
    NORM_FRACTION,
    OCTAVE,
    OCTAVE_BITS,
    Ints,
    Softmax,
    dyadic,
    normalise,
    reciprocal,
    requantise,
    settle,
)
from gossamer.accelerator.golden.baselines import BASELINES
from gossamer.core.files import write_json, write_text
from gossamer.evaluate.intervals import bootstrap_ratio

RESULTS = Path(__file__).resolve().parent / "results"
SOFTMAX = ((64, 1), (197, 1), (197, 4), (1024, 1), (1024, 2), (4096, 1), (4096, 4))
"""Columns and standard deviation of the logits."""
GELU = (4.0, 8.0, 16.0)
"""Largest input."""
NORMS = ((384, 2), (384, 100), (768, 12), (768, 1000), (4096, 12), (4096, 1000))
"""Columns and standard deviation of the rows."""
COLUMNS, CHUNK = 64, 8
Floats = NDArray[np.float64]


def softmax(logits: Floats) -> Floats:
    """Of the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attended(logits: Ints, scale: float, values: Ints) -> Floats:
    """The engine's softmax of logits (R, S) times values (S, N), but for the last rounding, in units of the values."""
    scores = requantise(logits, *dyadic(scale * np.log2(np.e) * OCTAVE))
    running = Softmax.start(len(scores))
    everywhere = np.ones(scores.shape, bool)
    parts = [
        running.exponentials(scores[:, at : at + CHUNK], everywhere[:, at : at + CHUNK])
        for at in range(0, scores.shape[1], CHUNK)
    ]
    last = running.maximum >> OCTAVE_BITS
    weights = np.concatenate(
        [settle(part, octave, last) for part, octave in zip(parts, running.octaves, strict=True)], 1
    )
    inverse, place = reciprocal(weights.sum(1))
    return (weights @ values * inverse[:, None]) / 2.0 ** (place[:, None] + 16)


def softmax_errors(rows: int) -> list[dict[str, object]]:
    """Relative root mean square error of the averages, by design, for every case."""
    table: list[dict[str, object]] = []
    for length, sigma in SOFTMAX:
        random = np.random.default_rng(0)
        logits = random.normal(0, sigma, (rows, length))
        scale = float(np.abs(logits).max() / 127)
        codes = np.rint(logits / scale).astype(np.int64)
        values = np.clip(np.rint(random.normal(0, 1, (length, COLUMNS)) * 32), -128, 127).astype(np.int64)
        exact = softmax(codes * scale)
        wanted = exact @ values
        given = {"Gossamer": attended(codes, scale, values)}
        for name, baseline in BASELINES.items():
            probabilities = baseline.softmax(codes, scale)
            given[name] = probabilities.integers @ values * probabilities.scale
        given["best 8-bit"] = np.rint(exact * 255) @ values / 255
        power = (wanted**2).sum(1)
        row: dict[str, object] = {"columns": length, "sigma": sigma}
        for name, averages in given.items():
            ratio = bootstrap_ratio(((averages - wanted) ** 2).sum(1), power, over="rows")
            row[name] = {key: getattr(ratio, key) ** 0.5 for key in ("value", "low", "high")}
        table.append(row)
    return table


def gelu_errors() -> list[dict[str, object]]:
    """Largest error of the 8-bit result, in its steps, over all 8-bit inputs; I-BERT is given 14 more bits."""
    table: list[dict[str, object]] = []
    codes = np.arange(-127, 128)
    for highest in GELU:
        scale = highest / 127
        exact = codes * 0.5 * (1 + erf(codes * scale / 2**0.5))
        row: dict[str, object] = {"range": highest, "Gossamer": float(np.abs(np.rint(exact) - exact).max())}
        for name, baseline in BASELINES.items():
            if baseline.gelu:
                more = 14 if name == "I-BERT" else 0
                out = baseline.gelu(codes << more, scale / 2**more)
                row[name] = float(np.abs(np.rint(out.integers * (out.scale / scale)) - exact).max())
        table.append(row)
    return table


def norm_errors(rows: int) -> list[dict[str, object]]:
    """Largest error of a normalised element."""
    table: list[dict[str, object]] = []
    for width, deviation in NORMS:
        x = np.rint(np.random.default_rng(0).normal(0, deviation, (rows, width))).astype(np.int64)
        exact = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
        ours = normalise(x, 0, centred=True) / 2.0**NORM_FRACTION
        row: dict[str, object] = {
            "columns": width,
            "deviation": deviation,
            "Gossamer": float(np.abs(ours - exact).max()),
        }
        for name, baseline in BASELINES.items():
            if baseline.layer_norm:
                out = baseline.layer_norm(x)
                row[name] = float(np.abs(out.integers * out.scale - exact).max())
        table.append(row)
    return table


def markdown(title: str, heads: dict[str, str], rows: list[dict[str, object]], form: str) -> list[str]:
    """A table of one operation; `heads`: key of the case → its heading."""
    sides = [name for name in rows[0] if name not in heads]
    lines = ["", title, "", f"| {' | '.join([*heads.values(), *sides])} |", "|---:" * (len(heads) + len(sides)) + "|"]
    for row in rows:
        cells = [f"{row[key]:g}" for key in heads]
        for side in sides:
            figure = row[side]
            if isinstance(figure, dict):
                cells.append(f"{figure['value']:{form}} [{figure['low']:{form}}, {figure['high']:{form}}]")
            else:
                cells.append(f"{figure:{form}}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measures all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256)
    options = parser.parse_args()
    command = f"python benchmarks/integer_arithmetic.py --rows {options.rows}"
    powers, gelus, norms = softmax_errors(options.rows), gelu_errors(), norm_errors(options.rows)
    write_json(
        RESULTS / "integer_arithmetic.json", {"command": command, "softmax": powers, "gelu": gelus, "layer_norm": norms}
    )
    lines = [
        f"`{command}`: {options.rows} synthetic rows (seed 0), the same integers for all.",
        *markdown(
            "Softmax of 8-bit logits N(0, σ), then the average of the values: relative RMS error [95 % over rows].",
            {"columns": "columns", "sigma": "σ"},
            powers,
            ".3f",
        ),
        *markdown(
            "GELU of all 8-bit inputs: largest error, in steps of the 8-bit result.", {"range": "range ±"}, gelus, ".2f"
        ),
        *markdown(
            "Layer norm of integers N(0, σ): largest error of a result of unit variance.",
            {"columns": "columns", "deviation": "σ"},
            norms,
            ".2g",
        ),
    ]
    write_text(RESULTS / "integer_arithmetic.md", "\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
