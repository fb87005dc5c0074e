"""The OpenVINO graphs of a model, traced from its own forward pass.

Models that write text become a graph with state: it keeps keys and values between calls, as optimum-intel and
OpenVINO GenAI expect it (`input_ids`, `attention_mask`, `position_ids`, `beam_idx`). Where images are part of the text
there are three: of the tokens' embeddings, of the images', and of the language model, which reads `inputs_embeds`.
All other models are one graph with the model's own inputs and outputs.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gossamer.core.errors import ModelError
from gossamer.models.loading import first_line, quiet
from gossamer.models.reloading import generates

if TYPE_CHECKING:
    import openvino

MODEL, TEXT, IMAGES, LANGUAGE = (
    "openvino_model", "openvino_text_embeddings_model", "openvino_vision_embeddings_model", "openvino_language_model",
)  # fmt: skip
"""The graphs' names, which are those of optimum-intel's files."""

_PAST, _NEW = 3, 5
"""Tokens before and in the step that a decoder is traced on."""

_MASKED = -65504.0
"""Added to scores of hidden positions: the least float16. A row that sees nothing stays finite then."""


def traced(model: Any, inputs: Mapping[str, Tensor], source: str) -> "dict[str, openvino.Model]":
    """The graphs of `model` by name. `inputs`: keyword arguments of a forward pass, which fix the inputs of a model
    that does not write text; sizes of batch and text stay free.

    The graphs' constants share the memory of the model's parameters. Raises `ModelError`, which names `source`, for
    what OpenVINO's converter or the graphs above do not cover.
    """
    if not generates(model):
        return {MODEL: _forward(model, inputs, source)}
    images = {name: value for name, value in inputs.items() if name not in ("input_ids", "attention_mask")}
    if not images:
        return {MODEL: _decoder(model, "input_ids", source)}
    known = inspect.signature(getattr(model, "get_image_features", lambda: None)).parameters
    strange = sorted(images.keys() - known)
    if strange:
        raise ModelError(
            f"{source} takes {', '.join(strange)} beside its text: OpenVINO export takes models whose images are "
            "embedded by themselves and put in the places of their tokens"
        )
    return {
        TEXT: _embeddings(model, source),
        IMAGES: _images(model, images, source),
        LANGUAGE: _decoder(model, "inputs_embeds", source),
    }


# ------------------------------------------------------------------------------------------------------ the graphs


@dataclass(frozen=True)
class _Past:
    """Keys and values of one layer: heads, and the width of each."""

    heads: int
    widths: tuple[int, int]


def _forward(model: nn.Module, inputs: Mapping[str, Tensor], source: str) -> "openvino.Model":
    """The forward pass, with all tensors that it returns. Traced on twice the examples and half the text, so that a
    comparison on `inputs` shows whether their sizes were taken for constants."""
    names = list(inputs)
    example = [torch.cat([_halved(value)] * 2) for value in inputs.values()]
    outputs = [name for name, value in _call(model, dict(zip(names, example, strict=True))).items() if _is_float(value)]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        found = _call(model, dict(zip(names, values, strict=True)))
        return tuple(found[name] for name in outputs)

    return _trace(model, run, example, names, outputs, source)


def _embeddings(model: Any, source: str) -> "openvino.Model":
    table = model.get_input_embeddings()
    return _trace(model, table, [torch.zeros(2, _NEW, dtype=torch.int64)], ["input_ids"], ["inputs_embeds"], source)


def _images(model: Any, inputs: Mapping[str, Tensor], source: str) -> "openvino.Model":
    """The embeddings of one example's images, (1, tokens, width). Several examples would not do: some families return
    a list, whose length the tracer takes for a constant."""
    names = list(inputs)

    def run(*values: Tensor) -> Tensor:
        return image_features(model, dict(zip(names, values, strict=True)))

    example = [value[:1] for value in inputs.values()]
    graph = _trace(model, run, example, names, ["last_hidden_state"], source)
    graph.reshape({port: [1, *list(port.get_partial_shape())[1:]] for port in graph.inputs})
    return graph


def image_features(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """What stands in the places of one example's image tokens, (1, tokens, width)."""
    found = model.get_image_features(**inputs)
    features = getattr(found, "pooler_output", found)
    parts = features if isinstance(features, (list, tuple)) else [features]
    return torch.cat([part.reshape(1, -1, part.shape[-1]) for part in parts], 1)


def _decoder(model: Any, reads: str, source: str) -> "openvino.Model":
    """The language model as a graph with state, which reads `input_ids` or `inputs_embeds`."""
    from transformers import DynamicCache

    past = _past(model, source)
    example = torch.ones(2, _NEW, dtype=torch.int64)
    places = torch.arange(_PAST, _PAST + _NEW).expand(2, -1).contiguous()
    shown = torch.ones(2, _PAST + _NEW, dtype=torch.int64)
    tensors = [torch.zeros(2, one.heads, _PAST, width) for one in past for width in one.widths]
    if reads == "inputs_embeds":
        example = model.get_input_embeddings()(example)

    def run(tokens: Tensor, attention_mask: Tensor, position_ids: Tensor, *kept: Tensor) -> tuple[Tensor, ...]:
        cache = DynamicCache()
        cache.layers = [_layer(*pair) for pair in zip(kept[::2], kept[1::2], strict=True)]
        step = {"attention_mask": attention_mask, "position_ids": position_ids, "past_key_values": cache}
        logits = model(**{reads: tokens, **step}, use_cache=True).logits
        grown: list[Any] = cache.layers
        return logits, *(tensor for layer in grown for tensor in (layer.keys, layer.values))

    kept = [f"past_key_values.{number}.{part}" for number in range(len(past)) for part in ("key", "value")]
    later = [name.replace("past_key_values", "present") for name in kept]
    names = [reads, "attention_mask", "position_ids"]
    graph = _trace(model, run, [example, shown, places, *tensors], [*names, *kept], ["logits", *later], source)
    _keep_state(graph, len(names), past)
    return graph


def _past(model: Any, source: str) -> list[_Past]:
    """What the model keeps for each layer, from one short run."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    with torch.no_grad():
        output = model(torch.ones(1, 2, dtype=torch.int64), past_key_values=DynamicCache(), use_cache=True)
    cache = output.past_key_values
    if not all(isinstance(layer, DynamicLayer) and layer.keys is not None for layer in cache.layers):
        raise ModelError(f"{source} keeps other things than keys and values: OpenVINO export takes attention models")
    return [_Past(layer.keys.shape[1], (layer.keys.shape[3], layer.values.shape[3])) for layer in cache.layers]


def _layer(keys: Tensor, values: Tensor) -> Any:
    from transformers.cache_utils import DynamicLayer

    layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def _call(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    with torch.no_grad():
        return model(**inputs)


def _halved(value: Tensor) -> Tensor:
    """The first half of each row of token ids or of their mask; other inputs as they are."""
    is_text = value.dim() == 2 and not value.is_floating_point()
    return value[:, : -(-value.shape[1] // 2)] if is_text else value


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


# -------------------------------------------------------------------------------------------------------- tracing


class _Traced(nn.Module):
    """A function of tensors over a model, as a module of its own."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *values: Tensor) -> Any:
        return self.function(*values)


def _trace(
    model: nn.Module,
    function: Callable[..., Any],
    example: list[Tensor],
    names: list[str],
    outputs: list[str],
    source: str,
) -> "openvino.Model":
    import openvino

    try:
        with torch.no_grad(), quiet():
            graph = openvino.convert_model(_Traced(model, function).eval(), example_input=tuple(example))
    except Exception as error:  # the tracer and the converter raise whatever they meet
        raise ModelError(f"{source} cannot be converted to OpenVINO's operations: {_reason(error)}") from error
    if len(graph.inputs) != len(names):
        raise ModelError(f"{source} cannot be converted to OpenVINO's operations: its graph ignores some of {names}")
    for port, name in zip((*graph.inputs, *graph.outputs), (*names, *outputs), strict=True):
        port.get_tensor().set_names({name})
    _masks_added(graph)
    return graph


def _reason(error: Exception) -> str:
    """The converter's own summary, where it has one."""
    lines = [line.removeprefix("-- ").strip() for line in str(error).splitlines() if line.startswith("-- ")]
    summary = [line for line in lines if line.startswith(("No conversion", "Conversion"))]
    return (summary or [first_line(error)])[0]


def _masks_added(graph: "openvino.Model") -> None:
    """Masks of attention become numbers that are added: of a row that sees nothing (padding on the left), OpenVINO's
    operator makes NaN of a boolean mask, and torch's does not."""
    import numpy as np
    import openvino
    from openvino import opset15 as ops

    zero, hidden = ops.constant(np.float32(0)), ops.constant(np.float32(_MASKED))
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "ScaledDotProductAttention" or node.get_input_size() < 4:
            continue
        mask = node.input_value(3)
        if mask.get_element_type() == openvino.Type.boolean:
            node.input(3).replace_source_output(ops.select(mask, zero, hidden).output(0))


def _keep_state(graph: "openvino.Model", inputs: int, past: list[_Past]) -> None:
    """Makes the inputs after the first `inputs`, and the outputs after the first, variables of the graph.

    `beam_idx` (batch,) says whose past each row goes on from. A variable is empty at first.
    """
    import numpy as np
    import openvino
    from openvino import opset15 as ops
    from openvino.op.util import Variable, VariableInfo

    rows = ops.parameter([-1], np.int32, name="beam_idx")
    rows.output(0).get_tensor().set_names({"beam_idx"})
    axis = ops.constant(np.int64(0))
    batch = ops.gather(ops.shape_of(graph.input(0)), ops.constant(np.array([0])), axis)
    sizes = [(one.heads, width) for one in past for width in one.widths]
    parameters, results = graph.get_parameters()[inputs:], graph.get_results()[1:]
    sinks = []
    for parameter, result, (heads, width) in zip(parameters, results, sizes, strict=True):
        shape = ops.concat([batch, ops.constant(np.array([heads, 0, width]))], 0)
        empty = ops.broadcast(ops.constant(np.float32(0)), shape)
        info = VariableInfo()
        info.variable_id, info.data_type = parameter.output(0).get_any_name(), openvino.Type.f32
        info.data_shape = openvino.PartialShape([-1, heads, -1, width])
        variable = Variable(info)
        parameter.output(0).replace(ops.gather(ops.read_value(empty, variable), rows, axis).output(0))
        sinks.append(openvino.op.assign(result.input_value(0).get_node(), variable))
        graph.remove_result(result)
        graph.remove_parameter(parameter)
    graph.add_parameters([rows])
    graph.add_sinks(sinks)
    graph.validate_nodes_and_infer_types()
