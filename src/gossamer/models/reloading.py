"""Reading a written checkpoint back through plain `transformers`, and checking that everything arrived."""

import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import ModelError
from gossamer.models.loading import unpack
from gossamer.models.widths import FIELD, trusted_class

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gossamer.models.open import Opened


def reload(directory: Path) -> "nn.Module":
    """The model in `directory` through plain `from_pretrained`: float32, eval, its compressed weights unpacked.

    Afterwards it is an ordinary dense model that can be changed and saved. (`dequantize=True`, which transformers
    offers for this, reads every layer with the first group's bits and is wrong for mixed precision.)
    Raises `ModelError` unless every tensor of the file found its place and every parameter its tensor.
    """
    model = _loaded(directory)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        for module in model.modules():
            unpack(module)
        quantizer.compressor.remove_decompression_hook(model)
        model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
        del model.config.quantization_config
    ready: nn.Module = model.float().eval().requires_grad_(False)
    return ready


def parity(opened: "Opened", directory: Path, inputs: Mapping[str, "Tensor"]) -> float:
    """The largest absolute difference of logits between `opened.model` and the checkpoint as plainly reloaded.

    `inputs` are the model's keyword arguments. The reloaded weights are unpacked as transformers unpacks them, but one
    block at a time. Raises as `reload` does.
    """
    ours = _logits(opened.model, inputs)
    opened.memory.rest()
    other = plain(directory).eval()
    memory = opened.memory.part()
    for parameter in other.parameters():
        parameter.data = memory.hold(parameter.data)
    memory.rest()
    _unpack_by_block(other, [block.module for block in opened.hierarchy.blocks()])
    try:
        theirs = _logits(other, inputs)
    except (RuntimeError, AttributeError):  # RWKV's forward reaches into its blocks before they run: all at once then
        theirs = _logits(plain(directory).eval(), inputs)
    return gap(ours, theirs)


def _unpack_by_block(model: Any, blocks: Iterable[str]) -> None:
    """Lets each block's compressed weights be unpacked only while it runs; others are unpacked now."""
    if getattr(model, "hf_quantizer", None) is None or not hasattr(model, "ct_decompress_hook"):
        return
    from compressed_tensors.compressors.base import decompress_module

    model.hf_quantizer.compressor.remove_decompression_hook(model)
    inside: set[nn.Module] = set()
    for name in blocks:
        block = model.get_submodule(name)
        members = [module for module in block.modules() if hasattr(module, "quantization_scheme")]
        states = [(module._parameters.copy(), module._buffers.copy(), module.quantization_status) for module in members]

        def unpack(*_: Any, members: Any = members) -> None:
            for module in members:
                decompress_module(module)

        def pack(*_: Any, members: Any = members, states: Any = states) -> None:
            for module, (parameters, buffers, status) in zip(members, states, strict=True):
                module._parameters, module._buffers = parameters.copy(), buffers.copy()
                module.quantization_status = status

        block.register_forward_pre_hook(unpack)
        block.register_forward_hook(pack)
        inside.update(members)
    for module in model.modules():
        if module not in inside:
            decompress_module(module)


def difference(model: "nn.Module", other: "nn.Module", inputs: Mapping[str, "Tensor"]) -> float:
    """The largest absolute difference of two models' logits. Infinite if either gives NaN."""
    return gap(_logits(model, inputs), _logits(other, inputs))


def _logits(model: "nn.Module", inputs: Mapping[str, "Tensor"]) -> "Tensor":
    import torch

    with torch.no_grad(), quiet():
        return logits_of(model(**inputs))


def gap(one: "Tensor", other: "Tensor") -> float:
    """The largest absolute difference; infinite if either holds NaN."""
    import torch

    pairs = zip(
        torch.split(one, 1), torch.split(other, 1), strict=True
    )  # one example at a time: vocabularies are large
    worst = [float((mine.float() - theirs.float()).abs().max()) for mine, theirs in pairs]
    return math.inf if any(map(math.isnan, worst)) else max(worst)


def plain(directory: Path) -> Any:
    """Plain `from_pretrained` in float32, with the check that nothing was left over or left out.

    Weights that transformers unpacks to a 16-bit type whatever is asked for (experts, 4-bit floats) are brought to
    float32, which holds the same values.
    """
    import torch

    model = _loaded(directory)
    if _unpacks_to_bfloat16(model):
        model.hf_quantizer.compressor.decompress_model(model)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()
    return model


def _loaded(directory: Path) -> Any:
    import torch

    model, info = from_pretrained(directory, dtype=torch.float32)
    lost = lost_keys(info)
    if lost:
        raise ModelError(f"{directory}: these tensors did not load: {', '.join(lost[:5])}")
    return model


def _unpacks_to_bfloat16(model: Any) -> bool:
    """Whether the weights of some layers would not be of the type that the rest is asked for."""
    from gossamer.models.packed import PACKED_FLOATS

    schemes = (getattr(module, "quantization_scheme", None) for module in model.modules())
    return any(scheme is not None and scheme.format in PACKED_FLOATS.values() for scheme in schemes)


def from_pretrained(directory: Path, kind: Any = None, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """`from_pretrained` of `kind`, or of the class that the directory's configuration names, with its loading report.

    Where the directory carries Gossamer's code, that is run, as for a user who trusts it. Raises `ModelError` if
    transformers lacks the class, or for code that is not Gossamer's.
    """
    import transformers

    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if kind is None and FIELD in config:
        kind = trusted_class(directory, config)
        settings["trust_remote_code"] = True
    elif kind is None:
        name = (config.get("architectures") or [""])[0]
        kind = getattr(transformers, name, None)
        if kind is None:
            raise ModelError(f"{directory}: config.json names the architecture {name!r}, which transformers lacks")
    with quiet():
        loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            directory, output_loading_info=True, local_files_only=True, **settings
        )
    return loaded


def lost_keys(info: Mapping[str, Any]) -> list[str]:
    """The tensors that a loading report says were missing, unexpected or of another shape, sorted."""
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    keys = {str(key[0] if isinstance(key, tuple) else key) for kind in kinds for key in info[kind]}
    return sorted(keys) + [str(message) for message in info.get("error_msgs", ())]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the loaders' progress bars off the terminal; their warnings still appear."""
    import io
    from contextlib import redirect_stderr

    with redirect_stderr(io.StringIO()):
        yield


def logits_of(output: Any) -> "Tensor":
    """The model's predictions (…, classes), or its last hidden state. Raises `ModelError` if it gives neither."""
    for name in ("logits", "logits_per_image", "last_hidden_state"):
        value = output.get(name)
        if value is not None:
            tensor: Tensor = value
            return tensor
    raise ModelError("the model's output holds no logits: it needs a task head to be judged by")


def generates(model: Any) -> bool:
    """Whether the model writes token after token, its past kept in a cache that is handed on."""
    known = set(inspect.signature(model.forward).parameters)
    return (
        model.can_generate()
        and {"input_ids", "past_key_values"} <= known
        and not getattr(model.config, "is_encoder_decoder", False)
    )
