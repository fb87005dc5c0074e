"""Environments of the tools that benchmarks compare with, each its own, made when first asked for."""

import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ENVIRONMENTS = Path(__file__).resolve().parent.parent / ".cache" / "peers"
REQUIREMENTS = {
    "llmcompressor": ("torch==2.13.0", "llmcompressor==0.14.0.1", "auto-round==0.15.1", "transformers==5.17.0"),
    "gptqmodel": ("torch==2.13.0", "gptqmodel==7.6.0", "transformers==5.17.0"),
    "torchao": ("torch==2.13.0", "torchao==0.18.0", "transformers==5.17.0", "accelerate==1.15.0", "safetensors==0.8.0"),
}
"""Peer environment → what it holds."""

Json = dict[str, Any]


def python_of(environment: str | None) -> str:
    """The interpreter of an environment."""
    return sys.executable if environment is None else str(ENVIRONMENTS / environment / "bin" / "python")


@cache
def unavailable(environment: str | None) -> str | None:
    """Why an environment cannot be used, None if it can. Makes it if it is not there, with the same torch as ours."""
    if environment is None:
        return None
    folder, requirements = ENVIRONMENTS / environment, REQUIREMENTS[environment]
    if not (folder / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    wanted = dict(requirement.split("==") for requirement in requirements)
    check = (
        "import sys, json; from importlib.metadata import version; "
        f"sys.exit(any(version(n).split('+')[0] != v for n, v in {wanted!r}.items()))"
    )
    if subprocess.run([python_of(environment), "-c", check], capture_output=True).returncode == 0:
        return None
    for requirement in requirements:  # torch first, so that nothing brings another build of it
        command = [python_of(environment), "-m", "pip", "install", "--quiet", requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{requirement} does not install: {last_line(done.stderr)}"
    return None


def in_process(python: str, script: Path, folder: Path, threads: int) -> Json:
    """The line of JSON that a script prints, or why there is none."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, str(script), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode < 0:
        return {"failed": f"ended by signal {-done.returncode}"}
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
        return {"failed": last_line(done.stderr)}
    return json.loads(done.stdout.strip().splitlines()[-1])


def last_line(text: str) -> str:
    """The last line of an error, without folders of this machine."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["no message"]
    return re.sub(r"(/[^\s/'\"]+)+/", "…/", lines[-1])[:300]
