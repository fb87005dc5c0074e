"""The job behind `gossamer export --format gguf`: a checkpoint in, one proved GGUF file out."""

from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer.core.errors import ModelError, OutputError, RequirementError
from gossamer.core.files import writing
from gossamer.core.outcome import Measure
from gossamer.core.progress import SILENT, Progress
from gossamer.core.runfolder import MARKER, checkpoint_of
from gossamer.models.adapter import FOLDER
from gossamer.models.gguf import gguf_tokenizer, read_gguf
from gossamer.models.gguf_write import read_back, write_gguf
from gossamer.models.inputs import input_grid
from gossamer.models.open import Opened, open_model
from gossamer.models.packed import QuantizedTensor
from gossamer.models.reloading import gap, logits_of
from gossamer.models.stored_codes import stored_codes
from gossamer.search.finish import PARITY_LIMIT
from gossamer.search.jobs import Json, read_result

PROBE = "In 1889 the tower was built: 7,300 tons of iron, 2.5 million rivets, and a view that (they say) is worth it."
"""The text on which logits and tokens are compared."""


def export_gguf_job(source: str, out: Path, progress: Progress = SILENT) -> Json:
    """Writes the model, checkpoint or finished run `source` to the file `out`, reads it back and compares.

    Returns `file`, `format`, `types` (tensors by ggml type), `measured`, `parity` (logits of the values written against
    those read back) and `notes`; `measured.logit_difference` is against the source's own values. Raises
    `RequirementError` where parity is worse than `PARITY_LIMIT`; nothing is left behind then.
    """
    if out.suffix != ".gguf":
        raise OutputError(f"cannot write {out}: a GGUF file's name ends in .gguf")
    opened = open_model(finished_checkpoint(source))
    codes = codes_of(opened, "GGUF")
    if opened.tokenizer is None:
        raise ModelError(f"{source} has no tokenizer: a GGUF file carries its own")
    words = opened.tokenizer(PROBE)["input_ids"]
    probe = torch.tensor([words[:32]])
    before = _logits(opened.model, probe)
    with writing(out) as temporary:
        written = write_gguf(opened, codes, temporary, progress)
        after = _logits(read_back(temporary, opened), probe)
        parity = gap(after, _logits(opened.model, probe))
        if not parity <= PARITY_LIMIT:
            raise RequirementError(
                f"export parity failed: logits differ by {parity:.3g} when {out.name} is read back, "
                f"at most {PARITY_LIMIT} is accepted"
            )
        tokenizer = gguf_tokenizer(temporary)
        measured = {
            "weight_bytes": sum(tensor.bytes for tensor in read_gguf(temporary).tensors),
            "file_bytes": temporary.stat().st_size,
            "logit_difference": gap(after, before),
        }
    notes = list(written.notes)
    if tokenizer is None or tokenizer(PROBE)["input_ids"] != words:
        notes.append("transformers reads this file's tokenizer differently: it cuts a test text into other tokens.")
    return {
        "file": str(out),
        "format": "gguf",
        "types": written.types,
        "measured": {key: Measure.exact(value).model_dump() for key, value in measured.items()},
        "parity": parity,
        "notes": notes,
    }


def finished_checkpoint(source: str) -> str:
    """The checkpoint of a run, or the model itself. Raises `OutputError` for a run that has not finished."""
    if (Path(source) / MARKER).exists():
        read_result(Path(source))
    return checkpoint_of(source)


def codes_of(opened: Opened, form: str) -> dict[str, QuantizedTensor]:
    """Parameter → the codes that the checkpoint holds.

    Raises `ModelError`, which names the format `form`, where there are low-rank matrices beside it, or rounded inputs.
    """
    rounding = next((name for name, module in opened.model.named_modules() if input_grid(module)), None)
    if rounding is not None:
        raise ModelError(
            f"{opened.source} rounds the inputs of {rounding}: {form} has no place for that, export the weights alone"
        )
    folder = opened.file if opened.file is not None and opened.file.is_dir() else None
    if folder is not None and (folder / FOLDER).exists():
        raise ModelError(f"{folder} has low-rank matrices beside it ({FOLDER}): {form} export takes no adapters")
    return stored_codes(folder) if folder is not None else {}


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return logits_of(model(ids))
