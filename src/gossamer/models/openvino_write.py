"""A model written as OpenVINO graphs, whose weights keep the codes that they are stored with, and run from there."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gossamer.core.errors import ModelError
from gossamer.models.openvino_constants import unpacked, widened
from gossamer.models.openvino_graphs import IMAGES, LANGUAGE, MODEL, TEXT, traced
from gossamer.models.packed import QuantizedTensor, brief_dtype
from gossamer.models.reloading import generates

if TYPE_CHECKING:
    import openvino

    from gossamer.models.open import Opened

EXACT: Mapping[str, Any] = {
    "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}  # fmt: skip
"""Settings under which the CPU plugin rounds nothing to fewer than 32 bits: activations, keys and values."""


_KINDS = ("u2", "i4", "u4", "i8", "f16", "bf16", "f32")
"""OpenVINO's types that weights, scales and zero points are stored in."""


@dataclass(frozen=True)
class Written:
    """What the graphs hold: `types` counts their constants of codes and floats by OpenVINO's type, single numbers left
    out; `notes` are sentences on what is not exact."""

    types: dict[str, int]
    notes: tuple[str, ...]


def write_openvino(
    opened: "Opened", codes: Mapping[str, QuantizedTensor], inputs: Mapping[str, Tensor], directory: Path
) -> Written:
    """Writes `opened.model` to `directory`, the parameters in `codes` by their codes and all other matrices at 16 bits.

    `inputs` are those of a forward pass (see `traced`). The model takes on the values that the graphs hold. Raises
    `ModelError` for a model that cannot be converted, or whose graphs do not show the weights as they are stored.
    """
    import openvino

    values = opened.model.state_dict()
    # Of tied tensors the name that has codes goes last, and holds.
    names = {values[name].data_ptr(): name for name in sorted(values, key=lambda name: name in codes)}
    rounded = _settle({name: values[name] for name in names.values()}, codes)
    graphs = traced(opened.model, inputs, opened.source)
    seen: set[str] = set()
    types: dict[str, int] = {}
    for stem, graph in graphs.items():
        seen |= _compress(graph, names, values, codes)
        for node in graph.get_ops():
            if node.get_type_name() == "Constant" and any(size > 1 for size in node.shape):
                kind = node.get_element_type().get_type_name()
                types |= {kind: types.get(kind, 0) + 1} if kind in _KINDS else {}
        openvino.save_model(graph, directory / f"{stem}.xml", compress_to_fp16=False)
    shared = {values[name].data_ptr() for name in seen}
    lost = sorted(name for name in codes if values[name].data_ptr() not in shared)
    notes = []
    if rounded:
        notes.append(f"{_some(rounded)}: rounded to 16 bits.")
    if lost:
        notes.append(f"{_some(lost)}: quantised, but not read by the graphs in that form.")
    return Written(types, tuple(notes))


def _settle(values: Mapping[str, Tensor], codes: Mapping[str, QuantizedTensor]) -> list[str]:
    """Gives matrices the values that are stored; returns the names of those without codes that this has changed."""
    changed = []
    for name, value in values.items():
        if value.dim() < 2 or not value.is_floating_point():
            continue
        stored = codes[name].dequantize() if name in codes else value.to(brief_dtype(value)).float()
        if name not in codes and not torch.equal(stored, value):
            changed.append(name)
        value.copy_(stored)
    return changed


def _compress(
    graph: "openvino.Model",
    names: Mapping[int, str],
    values: Mapping[str, Tensor],
    codes: Mapping[str, QuantizedTensor],
) -> set[str]:
    """Puts codes, or 16-bit floats, in the places of the constants that are the model's matrices; returns their names.

    The converter's constants share the memory of the model's parameters: by their addresses they are known.
    """
    found: dict[str, list[Any]] = {}
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "f32":
            continue
        name = names.get(node.data.ctypes.data)
        if name is not None and values[name].dim() > 1 and tuple(node.shape) == tuple(values[name].shape):
            found.setdefault(name, []).append(node)
    for name, constants in found.items():
        readers = {port.get_node().get_type_name() for node in constants for port in node.output(0).get_target_inputs()}
        nodes = unpacked(codes[name], "Gather" in readers) if name in codes else widened(values[name])
        nodes[-1].set_friendly_name(name)
        for node in constants:
            node.output(0).replace(nodes[-1].output(0))
    return set(found)


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


# ---------------------------------------------------------------------------------------------------- reading back


def expected(model: Any, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model itself computes, by the names of the graphs' outputs (see `computed`)."""
    with torch.no_grad():
        output = model(**inputs)
    if generates(model):
        logits = _visible(output.logits, inputs)
        return {"logits": logits, "logits in steps": logits}
    return {name: value for name, value in output.items() if isinstance(value, Tensor) and value.is_floating_point()}


def computed(
    directory: Path, model: Any, inputs: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What the written graphs compute on OpenVINO's CPU device under `settings`, by the names of their outputs.

    For a model that writes text those are `logits` (positions that the mask shows, vocabulary) of one pass, and of two
    thirds of the text, one token and the rest in three passes. `model` says only what it is.
    """
    import openvino

    core = openvino.Core()
    compiled = {
        path.stem: core.compile_model(path, "CPU", dict(settings)) for path in sorted(directory.glob("openvino_*.xml"))
    }
    if not generates(model):
        return {name: _tensor(value) for name, value in _named(compiled[MODEL](_arrays(inputs)))}
    reads, tokens = "input_ids", inputs["input_ids"]
    if TEXT in compiled:
        reads, tokens = "inputs_embeds", _embedded(compiled, model, inputs)
    request = compiled[LANGUAGE if LANGUAGE in compiled else MODEL].create_infer_request()
    rows, length = tokens.shape[:2]
    mask = inputs.get("attention_mask", torch.ones(rows, length, dtype=torch.int64))
    outputs = {}
    start = 2 * length // 3
    for name, cuts in (("logits", (0, length)), ("logits in steps", (0, start, start + 1, length))):
        request.reset_state()
        parts = []
        for first, last in pairwise(cuts):
            step = {
                reads: tokens[:, first:last],
                "attention_mask": mask[:, :last],
                "position_ids": torch.arange(first, last).expand(rows, -1),
                "beam_idx": torch.arange(rows, dtype=torch.int32),
            }
            parts.append(_tensor(request.infer(_arrays(step))["logits"]))
        outputs[name] = _visible(torch.cat(parts, 1), inputs)
    return outputs


def _embedded(compiled: Mapping[str, Any], model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The embeddings of text and images, the latter in the places of the image tokens."""
    ids = inputs["input_ids"]
    tokens = _tensor(compiled[TEXT](_arrays({"input_ids": ids}))["inputs_embeds"])
    images = {port.get_any_name(): inputs[port.get_any_name()] for port in compiled[IMAGES].inputs}
    for row in range(len(ids)):
        one = _arrays({name: value[row : row + 1] for name, value in images.items()})
        features = _tensor(compiled[IMAGES](one)["last_hidden_state"])
        places = ids[row] == model.config.image_token_id
        if int(places.sum()) != features.shape[1]:
            raise ModelError(f"{int(places.sum())} image tokens do not take {features.shape[1]} image embeddings")
        tokens[row, places] = features[0]
    return tokens


def _visible(logits: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    mask = inputs.get("attention_mask")
    return logits.flatten(0, 1) if mask is None else logits[mask.bool()]


def _arrays(inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: value.contiguous().numpy() for name, value in inputs.items()}


def _named(result: Any) -> list[tuple[str, Any]]:
    return [(port.get_any_name(), value) for port, value in result.items()]


def _tensor(value: Any) -> Tensor:
    return torch.from_numpy(value.copy())
