"""What `accelerator simulate` does with a model, on the golden machine: phases, tokens, mismatches, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.accelerator.program.random_stacks import Maker, llama, vit

from gossamer.accelerator import verify as verifying
from gossamer.accelerator.golden import tensors
from gossamer.accelerator.integer_model import IntegerModel
from gossamer.accelerator.verify import verify
from gossamer.accelerator.wiring import Wiring
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine

ENGINE = IntegerEngine(rows=8, columns=8, depth=8, lanes=4)
TOKENS = torch.tensor([3, 17, 0, 36, 9])


def language() -> IntegerModel:
    return IntegerModel({"language": llama(Maker(1), 20, 4, 2, 8, 28, 37)}, Wiring(text="language"), "random", "none")


def test_tokens_are_those_of_whole_tensors() -> None:
    model = language()
    found = verify(model, ENGINE, {"input_ids": TOKENS}, 4, rtl=False)
    assert found.mismatches == 0
    assert {name: phase.runs for name, phase in found.phases.items()} == {"prefill": 1, "decode": 4}
    rows = tensors.look_up(model.stacks["language"], [*TOKENS.tolist(), *found.tokens[:-1]])
    logits = tensors.run(model.stacks["language"], rows, ENGINE.depth)
    assert found.tokens == np.argmax(logits[len(TOKENS) - 1 :], -1).tolist()
    assert all(phase.cycles == phase.model_cycles > 0 for phase in found.phases.values())
    written = verify(model, ENGINE, {"input_ids": TOKENS}, 4, rtl=False, end=found.tokens[:1])
    assert written.tokens == found.tokens[:1]


def test_a_machine_that_errs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(verifying.Machine):
        def _norm(self, step):  # type: ignore[no-untyped-def]
            super()._norm(step)
            self.sram[step.out.line, 0, 0] ^= 64

    monkeypatch.setattr(verifying, "Machine", Wrong)
    assert verify(language(), ENGINE, {"input_ids": TOKENS}, 0, rtl=False).mismatches > 0


def test_pictures_and_words() -> None:
    make = Maker(5)
    tower = replace(vit(make, 24, 3, 40, 27, 9, 20), input_scale=1 / 127)
    stacks = {"vision": tower, "language": llama(Maker(6), 20, 4, 2, 8, 28, 37)}
    model = IntegerModel(stacks, Wiring("vision", "language", image_token=1, side=3), "random", "none")
    pixels = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = torch.tensor([4, *[1] * 9, 8, 30])
    found = verify(model, ENGINE, {"input_ids": tokens, "pixel_values": pixels}, 2, rtl=False)
    assert found.mismatches == 0
    assert {name: phase.runs for name, phase in found.phases.items()} == {"tower": 1, "prefill": 1, "decode": 2}
    parted = torch.tensor([*[1] * 5, 8, *[1] * 4])
    with pytest.raises(SettingError, match="must follow each other"):
        verify(model, ENGINE, {"input_ids": parted, "pixel_values": pixels}, 0, rtl=False)


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(SettingError, match="give a prompt"):
        verify(language(), ENGINE, {}, 1, rtl=False)
    tower = IntegerModel({"vision": vit(Maker(5), 24, 3, 40, 27, 9, 20)}, Wiring("vision", side=3), "random", "none")
    with pytest.raises(SettingError, match="reads images"):
        verify(tower, ENGINE, {}, 0, rtl=False)
