"""What the documents promise."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    *(f"docs/{name}.md" for name in ("cli", "architecture", "operation", "serving")),
)
DOCUMENTS = [ROOT / name for name in NAMES]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        if not target.endswith(".png"):  # pictures are made by a script, after a run
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_verb_and_option_named_exists(document: Path, gossamer) -> None:
    text = document.read_text(encoding="utf-8")
    for verb, rest in re.findall(r"^(?:\$ )?gossamer +(accelerator +[a-z0-9]+|[a-z]+)(.*)$", text, re.MULTILINE):
        shown = gossamer(*verb.split(), "--help")
        assert shown.code == 0, verb
        for option in re.findall(r"--[a-z-]+", rest.partition("#")[0]):
            assert f"  {option} " in shown.out, (verb, option)


def test_the_technique_of_the_guide_works() -> None:
    import torch

    from gossamer.core import technique as registry

    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "@technique" in block)
    space = {"__name__": "stochastic"}
    try:
        exec(compile(code, "CONTRIBUTING.md", "exec"), space)
        weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
        made = registry.build("stochastic", {"bits": 4, "group": 32})
        found = made.quantize(weight, None)
        assert found.tensor.codes.equal(made.quantize(weight, None).tensor.codes)
        assert 0 < found.loss < registry.build("stochastic", {"bits": 2, "group": 32}).quantize(weight, None).loss < 1
    finally:
        registry._TECHNIQUES.pop("stochastic", None)


def test_the_lock_pins_every_requirement_of_the_project() -> None:
    import tomllib

    lock = (ROOT / "requirements.lock").read_text()
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)$", lock, re.MULTILINE))
    names = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name is not None
        assert re.sub(r"[-_.]+", "-", name[0]).lower() in names, requirement
    rest = [line for line in lock.splitlines() if line and not line.startswith("#") and "==" not in line]
    assert rest == []
    assert "+cpu" not in lock
