"""Writing a compressed model as a Hugging Face directory that plain `transformers` reloads.

Quantised layers are stored in the compressed-tensors format (see `compressed_tensors.py`), all else at 16 bits.
What the public loaders cannot read back in that form is stored in the nearest form they can (see `containers.py`),
and a note says so. `settle` gives a model in memory exactly the stored values; `parity` proves that it has them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError
from gossamer.core.files import writing_directory
from gossamer.models.compressed_tensors import Kind, all_alike, exactly, parts, quantization_config
from gossamer.models.containers import constants
from gossamer.models.layout import Form, Layout, advice_on, dense_weight, layout_of, loaded_weight, notes_on
from gossamer.models.memory import Memory
from gossamer.models.packed import QuantizedTensor
from gossamer.models.reloading import from_pretrained, lost_keys, parity, reload
from gossamer.models.stacks import merged, taken_apart
from gossamer.models.stored import stored_tensors
from gossamer.models.widths import FIELD, write_code

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gossamer.models.open import Opened

__all__ = ["Stored", "parity", "reload", "save_compressed", "settle"]


@dataclass(frozen=True)
class Stored:
    """What a written checkpoint holds.

    `weight_bytes` is the sum over the tensors in the safetensors file, `tensors` their number, `dtype` the 16-bit type
    of all that is not quantised; `notes` are sentences on what is stored otherwise than the plan's grids alone say.
    """

    directory: Path
    weight_bytes: int
    tensors: int
    dtype: str
    notes: tuple[str, ...]


def save_compressed(opened: "Opened", tensors: Mapping[str, QuantizedTensor], directory: Path) -> Stored:
    """Writes the model with `tensors` (layer path → quantised weight) in place of those layers' weights.

    Everything else is taken from `opened.model` as it is now. The same model and tensors give the same bytes.
    Raises `PlanError` for a path or shape that is not the model's, `ModelError` for weights that are not finite or
    a result that does not load, `OutputError` where `directory` cannot be written; then nothing is left behind.
    """
    layout = layout_of(opened, tensors)
    with writing_directory(directory) as folder:
        _write(opened, folder, layout)
        refused = _refused(opened.model, folder, layout)
        if refused:
            layout = layout.without(refused, "transformers does not find their compressed form")
            _write(opened, folder, layout)
            if _refused(opened.model, folder, layout):
                raise ModelError(f"{opened.source}: the compressed checkpoint does not load, {min(refused)} for one")
        written = stored_tensors(folder)
    size = sum(tensor.bytes for tensor in written)
    notes = (*notes_on(layout), *advice_on(opened.model, layout))
    return Stored(directory, size, len(written), layout.dtype_name, notes)


def settle(opened: "Opened", tensors: Mapping[str, QuantizedTensor]) -> None:
    """Gives `opened.model` exactly the values that `save_compressed` stores: dequantised, or rounded to 16 bits.

    Ties that the checkpoint breaks are broken in the model too, so what is measured on it is what is exported.
    Raises as `save_compressed` does.
    """
    import torch

    model, layout = opened.model, layout_of(opened, tensors)
    for name in layout.ties.broken:
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        own = opened.memory.hold(getattr(module, attribute).detach().clone())
        setattr(module, attribute, torch.nn.Parameter(own, requires_grad=False))
    forms = _by_tensor(layout)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(layout.dtype))
        for form in forms.get(name, ()):
            form.layer.place(tensor).copy_(loaded_weight(form, layout.dtype))
        opened.memory.rest()


def _by_tensor(layout: Layout) -> dict[str, list[Form]]:
    """Parameter → the forms of the matrices that it holds."""
    found: dict[str, list[Form]] = {}
    for form in layout.forms:
        found.setdefault(form.layer.tensor, []).append(form)
    return found


def _write(opened: "Opened", folder: Path, layout: Layout) -> None:
    from safetensors.torch import save_file

    save_file(_state(opened, layout), folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(opened.model, folder, layout)
    if FIELD in config:
        write_code(opened.model, folder, config)
    _write_json(folder / "config.json", config)
    model: Any = opened.model
    generation = getattr(model, "generation_config", None) if model.can_generate() else None
    for part in (opened.processor or opened.tokenizer, generation):
        if part is not None:
            part.save_pretrained(folder)
    if opened.defaults:
        _write_json(folder / "gossamer.json", opened.defaults)


def _state(opened: "Opened", layout: Layout) -> dict[str, "Tensor"]:
    """The tensors of the file by the names that `save_pretrained` gives them, sorted.

    Compressed experts have one name for each. Where saving would merge or split other tensors, a file with compressed
    layers keeps the model's own names for them: the loader's conversions would take the parts for packed ones.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model: Any = opened.model
    memory = opened.memory.part()
    dense = _dense_state(model, layout, memory)
    saved = revert_weight_conversion(model, dict(dense))
    places = {(tensor.data_ptr(), tensor.shape): key for key, tensor in saved.items() if tensor.numel()}
    keys = {name: places.get((tensor.data_ptr(), tensor.shape), name) for name, tensor in dense.items()}
    if layout.compressed():
        saved = {keys[name]: tensor for name, tensor in dense.items()}
    for form in (form for form in layout.compressed() if form.layer.index is None):
        key = keys[form.layer.tensor]
        del saved[key]
        beside = constants(model.get_submodule(form.layer.module))
        inputs = form.inputs.constants() if form.inputs is not None else {}
        stored = {**beside, **inputs, **parts(form.tensor, form.container)}
        saved |= {f"{key.removesuffix('weight')}{name}": memory.hold(tensor) for name, tensor in stored.items()}
        memory.rest()
    for name, forms in _stacks(layout).items():
        del saved[keys[name]]
        for key, tensor in _apart(model, name, forms).items():
            stored = parts(tensor, forms[0].container)
            saved |= {f"{key.removesuffix('weight')}{part}": memory.hold(value) for part, value in stored.items()}
        memory.rest()
    return {key: saved[key].contiguous() for key in sorted(saved)}


def _stacks(layout: Layout) -> dict[str, list[Form]]:
    """Stacked parameter → the forms of its matrices in order, for the compressed ones."""
    found: dict[str, list[Form]] = {}
    for form in layout.compressed():
        if form.layer.index is not None:
            found.setdefault(form.layer.tensor, []).append(form)
    return {name: sorted(forms, key=lambda form: form.layer.index or 0) for name, forms in found.items()}


def _apart(model: "nn.Module", name: str, forms: list[Form]) -> dict[str, QuantizedTensor]:
    """Name of the dense weight in a checkpoint → its codes, for all matrices that make up a stacked parameter."""
    import torch

    codes = taken_apart(model, name, torch.stack([form.tensor.codes for form in forms]))
    scales = taken_apart(model, name, torch.stack([form.tensor.scales for form in forms]))
    scheme = forms[0].tensor.scheme
    return {key: QuantizedTensor(scheme, tuple(codes[key].shape), codes[key], scales[key]) for key in codes}


def _dense_state(model: "nn.Module", layout: Layout, memory: Memory) -> dict[str, "Tensor"]:
    """The state dict with own memory for every tensor, floats at 16 bits.

    Quantised layers that stay dense are on their grids; compressed ones have no values, as only their names are asked.
    """
    import torch

    ignored = layout.ties.kept | set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    forms = _by_tensor(layout)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name in ignored:
            continue
        here, dtype = forms.get(name, []), layout.dtype if tensor.is_floating_point() else tensor.dtype
        if here and all(form.compressed for form in here):
            state[name] = torch.empty(tensor.shape, dtype=dtype)
            continue
        value = tensor.detach().to(dtype, copy=True).contiguous()
        for form in here:
            form.layer.place(value).copy_(dense_weight(form))
        state[name] = memory.hold(value)
        memory.rest()
    return state


def _config(model: Any, folder: Path, layout: Layout) -> dict[str, Any]:
    """`config.json`: the model's own, with one dtype throughout, no machine paths, broken ties and the groups."""
    import torch

    model.config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    written.pop("quantization_config", None)
    config = {**_portable(written, layout.dtype_name), "dtype": layout.dtype_name}
    config["architectures"] = [type(model).__name__]
    for way in layout.ties.configs:
        section = config
        for name in way:
            section = section.setdefault(name, {})
        section["tie_word_embeddings"] = False
    forms = [form for form in layout.compressed() if form.layer.index is None]
    kinds = {exactly(form.layer.module): (form.container, form.tensor.scheme, form.inputs) for form in forms}
    experts: dict[str, Kind] = {}
    stacks = _stacks(layout)
    every = stacks.keys() == merged(model).keys()  # then few targets are enough, each of which loaders remark on
    for name, members in stacks.items():
        kind = members[0].container, members[0].tensor.scheme, None
        keys = taken_apart(model, name, torch.empty_like(model.get_parameter(name), device="meta"))
        experts |= {all_alike(key.removesuffix(".weight"), last=not every): kind for key in keys}
    if kinds or experts:
        packed = {form.layer.module for form in forms}
        linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
        dense = [name for name in linear if name not in packed]
        config["quantization_config"] = quantization_config(kinds, experts, dense)
    return config


def _portable(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if key not in {"_name_or_path", "torch_dtype"}}
        return {key: dtype if key == "dtype" else _portable(item, dtype) for key, item in kept.items()}
    return [_portable(item, dtype) for item in value] if isinstance(value, list) else value


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _refused(opened: "nn.Module", folder: Path, layout: Layout) -> set[str]:
    """Compressed modules that transformers does not find in the folder, which it loads here without memory.

    Raises `ModelError` if anything else does not load, or if a broken tie would be tied again.
    """
    model, info = from_pretrained(folder, type(opened), device_map="meta", ignore_mismatched_sizes=True)
    tied = layout.ties.broken & set(model.all_tied_weights_keys)
    if tied:
        raise ModelError(f"the checkpoint would be tied again on loading: {', '.join(sorted(tied))}")
    modules = {form.layer.module for form in layout.compressed()}
    # Without memory the loader only estimates the columns of packed experts with one scale for each row.
    stacks = _stacks(layout)
    mismatched = [key for key in info["mismatched_keys"] if key[0] not in stacks]
    lost = lost_keys({**info, "mismatched_keys": mismatched})
    strangers = [key for key in lost if key.rpartition(".")[0] not in modules]
    if strangers:
        raise ModelError(f"the checkpoint does not load: {', '.join(strangers[:5])}")
    return {key.rpartition(".")[0] for key in lost}
