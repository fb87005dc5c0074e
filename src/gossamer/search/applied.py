"""Plans carried out, remembered in the run folder so that a resumed job does not quantise twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from gossamer.compress.apply import Applied, apply_steps
from gossamer.compress.chain import assign
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
        file = self.folder.file("applied", inputs, ".safetensors")

        def compute() -> dict[str, Any]:
            touched = assign(self.hierarchy, steps).chains
            with restored(self.model, [layer for layer in self.hierarchy.layers() if layer.path in touched]):
                done = apply_steps(self.model, self.hierarchy, steps, self.calibration, progress)
            state = {}
            for path, tensor in done.tensors.items():
                state.update(tensor.to_state(f"{path}|"))
            with writing(file) as temporary:
                save_file(state, temporary)
            return {"notes": done.notes}

        record = self.folder.step("applied", inputs, compute)
        state = load_file(file)
        paths = sorted(key.removesuffix("|scheme") for key in state if key.endswith("|scheme"))
        tensors = {path: QuantizedTensor.from_state(state, f"{path}|") for path in paths}
        return Applied(self.hierarchy, tensors, list(record["notes"]))
