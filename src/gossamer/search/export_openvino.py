"""The job behind `gossamer export --format openvino`: a checkpoint in, proved OpenVINO graphs out."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer.core.errors import DataError, OutputError, RequirementError
from gossamer.core.files import refuse_foreign, writing_directory
from gossamer.core.outcome import Measure
from gossamer.evaluate.divergence import kl_per_position
from gossamer.evaluate.job import chosen_task
from gossamer.models.open import Opened, open_model
from gossamer.models.openvino_graphs import LANGUAGE, MODEL
from gossamer.models.openvino_write import EXACT, computed, expected, write_openvino
from gossamer.models.reloading import gap, logits_of
from gossamer.search.export import PROBE, codes_of, finished_checkpoint
from gossamer.search.finish import PARITY_LIMIT
from gossamer.search.jobs import Json

EXAMPLES = 2
"""Examples of the model's own data on which outputs are compared."""


def export_openvino_job(source: str, out: Path) -> Json:
    """Writes the graphs of the model, checkpoint or finished run `source` to the folder `out`, runs them and compares.

    Returns `folder`, `format`, `types` (constants by OpenVINO's type), `measured`, `parity` (all outputs of the values
    written against those of OpenVINO's CPU device without further rounding) and `notes`. In `measured`,
    `logit_difference` and `kl` are against the source's own values, `default_…` the same under the device's own
    settings. Raises `RequirementError` where parity is worse than `PARITY_LIMIT`; nothing is left behind then.
    """
    if importlib.util.find_spec("openvino") is None:
        raise OutputError("cannot write OpenVINO graphs without the openvino package: pip install 'gossamer[openvino]'")
    earlier = next((name for name in (MODEL, LANGUAGE) if (out / f"{name}.xml").exists()), MODEL)
    refuse_foreign(out, f"{earlier}.xml")
    opened = open_model(finished_checkpoint(source))
    codes = codes_of(opened, "OpenVINO")
    inputs = _probe(opened)
    before = expected(opened.model, inputs)
    with writing_directory(out) as folder:
        written = write_openvino(opened, codes, inputs, folder)
        own = expected(opened.model, inputs)
        exact, usual = (computed(folder, opened.model, inputs, settings) for settings in (EXACT, {}))
        parity = max(gap(own[name], exact[name]) for name in own)
        if not parity <= PARITY_LIMIT:
            raise RequirementError(
                f"export parity failed: outputs differ by {parity:.3g} when OpenVINO runs the graphs of {source}, "
                f"at most {PARITY_LIMIT} is accepted"
            )
        parts: list[Any] = [opened.model.config, opened.processor or opened.tokenizer, _generation(opened)]
        for part in parts:
            if part is not None:
                part.save_pretrained(folder)
        sizes = {file.name: file.stat().st_size for file in folder.glob("openvino_*")}
        measured = {
            "weight_bytes": sum(size for name, size in sizes.items() if name.endswith(".bin")),
            "file_bytes": sum(sizes.values()),
            **_distance(before, exact),
            **{f"default_{key}": value for key, value in _distance(before, usual).items()},
        }
    return {
        "folder": str(out),
        "format": "openvino",
        "types": written.types,
        "measured": {key: Measure.exact(value).model_dump() for key, value in measured.items()},
        "parity": parity,
        "notes": list(written.notes),
    }


def _probe(opened: Opened) -> dict[str, Tensor]:
    """Inputs of a forward pass: examples of the model's own task, else a text, else two images of noise.

    Raises `DataError` for a model that suggests no data and takes more than that.
    """
    if opened.defaults:
        return dict(next(iter(chosen_task(opened, None, None, EXAMPLES, seed=0).batches(EXAMPLES))).inputs)
    config = opened.model.config
    if opened.tokenizer is not None and not hasattr(config, "vision_config"):
        words = opened.tokenizer([PROBE[: len(PROBE) // 2], PROBE[-(len(PROBE) // 2) :]])["input_ids"]
        length = min(map(len, words))
        return {"input_ids": torch.tensor([line[:length] for line in words])}
    size = getattr(config, "image_size", None)
    if opened.model.main_input_name == "pixel_values" and isinstance(size, int):
        shape = (EXAMPLES, getattr(config, "num_channels", 3), size, size)
        return {"pixel_values": torch.rand(shape, generator=torch.Generator().manual_seed(0))}
    raise DataError(
        f"{opened.source} suggests no data to compare outputs on: write its task and data into gossamer.json beside it"
    )


def _generation(opened: Opened) -> Any | None:
    model: Any = opened.model
    return getattr(model, "generation_config", None) if model.can_generate() else None


def _distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    """The largest difference of logits, and the mean KL where they make distributions. Of text, those made in steps:
    only they depend on how keys and values are kept."""
    one, other = (found.get("logits in steps", logits_of(found)) for found in (before, after))
    distance = {"logit_difference": gap(one, other)}
    if "last_hidden_state" not in before and "pred_boxes" not in before:
        baseline, candidate = (tensor.flatten(0, -2).log_softmax(-1) for tensor in (one, other))
        distance["kl"] = float(kl_per_position(baseline, candidate).double().mean())
    return distance
