"""Plans carried out, remembered in the run folder so that a resumed job does not quantise twice."""

from collections.abc import Sequence
from dataclasses import dataclass

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from gossamer.compress.apply import Applied, apply_steps
from gossamer.compress.swap import restored
from gossamer.core.files import writing
from gossamer.core.plan import Step
from gossamer.core.progress import Progress
from gossamer.core.runfolder import RunFolder
from gossamer.data.batch import Batch
from gossamer.models.hierarchy import Hierarchy
from gossamer.models.packed import QuantizedTensor


@dataclass(frozen=True)
class Applier:
    """Applies compression steps to one model, leaves the model as it was, and keeps the quantised weights on disk."""

    folder: RunFolder
    model: nn.Module
    hierarchy: Hierarchy
    calibration: Sequence[Batch]
    key: object

    def __call__(self, steps: Sequence[Step], progress: Progress) -> Applied:
        """The steps' result, from disk if it is there."""
        inputs = [self.key, [dict(step) for step in steps]]
        notes = self.folder.file("applied", inputs, ".json")
        file = self.folder.file("applied", inputs, ".safetensors")
        if not (file.exists() and notes.exists()):
            with restored(self.model, self.hierarchy.layers()):
                done = apply_steps(self.model, self.hierarchy, steps, self.calibration, progress)
            state = {}
            for path, tensor in done.tensors.items():
                state.update(tensor.to_state(f"{path}|"))
            with writing(file) as temporary:
                save_file(state, temporary)
            self.folder.step("applied", inputs, lambda: {"losses": done.losses, "notes": done.notes})
        record = self.folder.step("applied", inputs, dict)
        with safe_open(file, "pt") as stored:
            paths = [key.removesuffix("|scheme") for key in stored.keys() if key.endswith("|scheme")]  # noqa: SIM118
        state = load_file(file)
        tensors = {path: QuantizedTensor.from_state(state, f"{path}|") for path in sorted(paths)}
        return Applied(tensors, record["losses"], tuple(record["notes"]))
