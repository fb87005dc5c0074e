"""Compresses the shipped vision-language model under a budget in bytes, and reads the result.

python examples/compress_under_a_budget.py [MODEL] [--data FILE] [--ratio 0.25] [--out FOLDER]
"""

import argparse
from pathlib import Path

from gossamer.report.build import write_report
from gossamer.search.optimize import optimize
from gossamer.search.request import OptimizeRequest


def main() -> None:
    parser = argparse.ArgumentParser(description="Compress a model under a budget in bytes.")
    parser.add_argument("model", nargs="?", default="tiny-vlm")
    parser.add_argument("--data", help="questions about images; by default the model's own")
    parser.add_argument("--ratio", type=float, default=0.25, help="the budget as a share of the 16-bit size")
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    wanted = parser.parse_args()

    request = OptimizeRequest(wanted.model, wanted.out, data=wanted.data, ratio=wanted.ratio, effort="quick")
    result = optimize(request)  # interrupted, it goes on from here with the same bytes
    write_report(wanted.out, result)

    for name, side in (("16 bits", result["baseline"]["measured"]), ("compressed", result["measured"])):
        accuracy, size = side["accuracy"], side["weight_bytes"]["value"]
        spread = f"[{accuracy['low']:.1%}, {accuracy['high']:.1%}], {accuracy['n']} questions"
        print(f"{name}: {accuracy['value']:.1%} {spread}, {size / 1e6:.2f} MB")
    print(f"{len(result['pareto'])} sizes on the front; checkpoint: {wanted.out / result['checkpoint']}")


if __name__ == "__main__":
    main()
