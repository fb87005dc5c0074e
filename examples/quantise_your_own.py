"""Rounds the language model in a Hugging Face folder by a uniform preset, and compares the two on a text of yours.

python examples/quantise_your_own.py FOLDER TEXT.txt --out FOLDER-w4

The preset rtn needs no data; gptq does, and finds it in FOLDER/gossamer.json: {"task": "text", "data": "OTHER.txt"}.
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM

from gossamer.search.jobs import apply_job, compare_job


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantise a language model and measure what it cost.")
    parser.add_argument("folder")
    parser.add_argument("text")
    parser.add_argument("--preset", default="rtn-w4g64")
    parser.add_argument("--out", type=Path, required=True)
    wanted = parser.parse_args()

    applied = apply_job(wanted.preset, wanted.folder, wanted.out)
    print(f"saved {applied['measured']['saving_percent']['value']:.1f} % of the bytes at 16 bits")

    compared = compare_job(wanted.folder, str(wanted.out), task="text", data=wanted.text)
    for side in ("a", "b"):
        print(f"perplexity of {compared[side]['model']}: {compared[side]['measured']['perplexity']['value']:.2f}")
    rise = compared["difference"]["perplexity"]
    print(f"it rose by {rise['value']:.2f} [{rise['low']:.2f}, {rise['high']:.2f}], {rise['method']}, {rise['n']}")

    AutoModelForCausalLM.from_pretrained(wanted.out)  # plain transformers opens it too


if __name__ == "__main__":
    main()
