"""Building models from Hugging Face configs and weights: the right class, dense float32, nothing missing unnoticed."""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gossamer.core.errors import GossamerError, ModelError
from gossamer.models.memory import IN_MEMORY, Memory
from gossamer.models.stored import safetensors_files
from gossamer.models.widths import FIELD, class_with_widths

if TYPE_CHECKING:
    from torch import Tensor, nn


def read_config(path: Path) -> Any:
    """The config in a JSON file. Raises `ModelError` if it is malformed or of an unknown architecture."""
    from transformers import AutoConfig

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not valid JSON: give a Hugging Face config.json") from error
    kind = data.get("model_type") if isinstance(data, dict) else None
    if not kind:
        raise ModelError(f"{path} names no model_type: give a Hugging Face config.json")
    try:
        return AutoConfig.from_pretrained(str(path))
    except (KeyError, ValueError) as error:
        from transformers import CONFIG_MAPPING

        if kind not in CONFIG_MAPPING:
            raise ModelError(f"{path} is of unknown architecture {kind!r}: transformers must have its code") from error
        raise ModelError(f"{path} is malformed: {first_line(error)}") from error
    except Exception as error:
        raise ModelError(f"{path} is malformed: {first_line(error)}") from error


def class_of(config: Any, path: Path) -> Any:
    """The model class: the one that the config names, or the first auto class that knows the model type."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    for name in config.architectures or ():
        found = class_with_widths(name) if hasattr(config, FIELD) else getattr(transformers, name, None)
        if found is None:
            raise ModelError(f"{path} is of unknown architecture {name!r}: transformers must have its code")
        return found
    mappings = (
        auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING, auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, auto.MODEL_MAPPING,
    )  # fmt: skip
    for mapping in mappings:
        if type(config) in mapping:
            return mapping[type(config)]
    raise ModelError(f"{path} names no architecture, and none is known for {config.model_type!r}")


def meta_model(config: Any, path: Path) -> "nn.Module":
    """The model without values, on the meta device. Raises `ModelError` if the config describes none."""
    import torch

    try:
        with torch.device("meta"):
            model: nn.Module = class_of(config, path)._from_config(dense_config(config), dtype=torch.float32)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: this config describes no buildable model ({first_line(error)})") from error
    return model


def load_weights(path: Path, config: Any, memory: Memory = IN_MEMORY) -> "nn.Module":
    """The model with its weights, dense float32, whatever they are stored as.

    Those of a dense checkpoint are read one by one into `memory`.

    Raises `ModelError` for other quantised formats and for tensors that are missing or of another shape.
    """
    import torch

    method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    if method not in (None, "compressed-tensors"):
        raise ModelError(f"{path} is quantised with {method!r}: dense and compressed-tensors checkpoints can be opened")
    kind = class_of(config, path)
    settings: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    try:
        if method is None and memory is not IN_MEMORY:
            model, report = kind.from_pretrained(None, config=config, state_dict=_read(path, memory), **settings)
            if model.can_generate():
                model.generation_config = _generation(path)
        else:
            model, report = kind.from_pretrained(str(path), use_safetensors=True, **settings)
    except GossamerError:
        raise
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded: its tensors do not fit its config ({first_line(error)})") from error
    _check_fits(path, report)
    if method is not None:
        from gossamer.models.inputs import round_inputs, stored_input_grids

        grids = stored_input_grids(model)
        model.hf_quantizer.compressor.decompress_model(model)
        model = plain_copy(model, dense_config(config))
        for name, grid in grids.items():
            round_inputs(model.get_submodule(name), grid)
    whole: nn.Module = model
    return whole.float()


def _check_fits(path: Path, report: Mapping[str, Any]) -> None:
    """Raises `ModelError` for what a loading report says is missing or of another shape."""
    missing, wrong = sorted(report["missing_keys"]), sorted(report["mismatched_keys"])
    if missing or wrong:
        name = missing[0] if missing else str(wrong[0][0])
        count = len(missing) + len(wrong)
        raise ModelError(f"{path} does not fit its config: {count} tensors are missing or of other shape, first {name}")


def load_packed(path: Path, config: Any) -> "nn.Module":
    """The model as it is stored: compressed layers keep their codes (`weight_packed` or so in place of a weight). What
    is stored in floats is float32 beside those, else of its own type. Only parts whose layers have weights can be run.

    Raises as `load_weights` does.
    """
    method = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    if method not in (None, "compressed-tensors"):
        return load_weights(path, config)  # which says what can be opened
    import torch

    settings: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    try:  # scales are float16, which the type of a model need not hold
        dtype = "auto" if method is None else torch.float32
        model, report = class_of(config, path).from_pretrained(str(path), dtype=dtype, **settings)
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded: its tensors do not fit its config ({first_line(error)})") from error
    _check_fits(path, report)
    if hasattr(model, "ct_decompress_hook"):
        model.hf_quantizer.compressor.remove_decompression_hook(model)
    whole: nn.Module = model
    return whole


def unpack(layer: "nn.Module") -> None:
    """Gives a layer that transformers has loaded packed its weight; its inputs are rounded as is stored. Others stay as
    they are."""
    if hasattr(layer, "quantization_scheme"):
        from compressed_tensors.compressors.base import decompress_module

        from gossamer.models.inputs import round_inputs, stored_input_grids

        grids = stored_input_grids(layer)
        decompress_module(layer, leave_decompressed=False)
        round_inputs(layer, grids.get(""))


def _generation(directory: Path) -> Any:
    """The generation config that `from_pretrained` finds in a directory: in a file of its own, or in the model's."""
    from transformers import GenerationConfig

    if (directory / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(directory)
    return GenerationConfig.from_pretrained(directory, config_file_name="config.json", _from_model_config=True)


def _read(directory: Path, memory: Memory) -> "dict[str, Tensor]":
    """Every tensor of a directory's weight files, floats as float32, in `memory`."""
    import torch
    from safetensors import safe_open

    state = {}
    for file in safetensors_files(directory):
        with safe_open(file, framework="pt", backend="pread") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the handle is no mapping
                tensor = tensors.get_tensor(name)
                dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
                state[name] = memory.empty(tuple(tensor.shape), dtype).copy_(tensor)
                memory.rest()
    return state


def plain_copy(model: Any, config: Any) -> "nn.Module":
    """A fresh model of the same class that takes over the weights of one that transformers counts as quantised.

    Such a model refuses to be saved or changed like any other.
    """
    plain: Any = type(model)(config)
    wanted = plain.state_dict().keys()
    state = {name: tensor.float() for name, tensor in model.state_dict().items() if name in wanted}
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    whole: nn.Module = plain
    return whole


def dense_config(config: Any) -> Any:
    """The config without its quantization entry."""
    return type(config).from_dict({k: v for k, v in config.to_dict().items() if k != "quantization_config"})


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' bars and advice off standard error while a model is opened; errors still arrive."""
    import transformers

    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
