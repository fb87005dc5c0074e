"""Models whose decoder runs in the native engine: opened without unpacking, their weights held once, in its order."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.engine.native import abi
from gossamer.engine.native.library import Engine, shared_engine
from gossamer.engine.native.lower import HIDDEN, NotServedError, Program, decoder_of, lower, mixtures_of
from gossamer.engine.native.stepper import NativeStepper, Precision
from gossamer.models.adapter import read_adapter
from gossamer.models.gguf_codes import Codes, gguf_codes
from gossamer.models.inputs import round_inputs, stored_input_grids
from gossamer.models.loading import unpack
from gossamer.models.low_rank import LowRank
from gossamer.models.open import Opened, open_packed
from gossamer.models.stored_codes import stacked_codes


class Native:
    """Steppers for a model, and for twins of it with fewer of its blocks, on one engine.

    The decoder's weights are taken over: afterwards the model's own code runs up to its first block, no further.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Precision | None = None,
        threads: int | None = None,
        low_ranks: Mapping[str, LowRank] | None = None,
        codes: Mapping[str, Codes] | None = None,
    ) -> None:
        self._precision, self._low_ranks = precision, low_ranks
        program = lower(model, codes, low_ranks=low_ranks)
        self.engine = shared_engine(threads or torch.get_num_threads())
        self._blocks = list(decoder_of(model).layers)
        self._programs = {tuple(map(id, self._blocks)): program}
        self.weight_bytes = program.weight_bytes
        self.bytes_per_token = program.bytes_per_token
        self._weights = program.weights
        _give_up(model, program, self.engine)
        for name, module in model.named_modules():  # vision towers and the like, which torch runs
            unpack(module)
            beside = (low_ranks or {}).get(name)
            if beside is not None and f"{name}.weight" not in program.weights:
                weight = module.get_parameter("weight")
                weight.data = weight.float() + beside.dense().reshape(weight.shape)
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.float()

    def __call__(self, model: nn.Module) -> NativeStepper:
        """A stepper of the model, or of a twin that shares its modules. Raises `NotServedError` for another model."""
        blocks = tuple(map(id, decoder_of(model).layers))
        if not {*blocks} <= {*map(id, self._blocks)}:
            raise NotServedError(f"this {type(model).__name__} is another model than the one that was opened")
        if blocks not in self._programs:
            self._programs[blocks] = lower(model, known=self._weights, low_ranks=self._low_ranks)
        return NativeStepper(self._programs[blocks], model, self.engine, self._precision)


def open_native(ref: str, precision: Precision | None = None, threads: int | None = None) -> tuple[Opened, Native]:
    """The model `ref`, and what makes steppers of it. No weight of its decoder is unpacked.

    Raises `NotServedError` if the native engine does not run this model, `DeviceError` if it cannot be built here, and
    what `open_model` does.
    """
    outline = open_packed(ref)
    decoder = decoder_of(outline.model)
    file = outline.file
    if file is None or not file.is_dir():
        stored = {} if file is None or file.suffix.lower() != ".gguf" else gguf_codes(file, outline.model)
        return outline, Native(outline.model, precision, threads, codes=stored)
    codes = stacked_codes(file) if mixtures_of(decoder) else {}
    return outline, Native(outline.model, precision, threads, read_adapter(file), codes)


class PackedEmbedding(nn.Module):
    """Rows of a packed embedding, in its place in the model."""

    def __init__(self, embedding: Any, op: abi.Op, engine: Engine) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.scalar_embed_scale = op.scale
        self._ops, self._engine = (abi.Op * 1)(op), engine

    def forward(self, ids: Tensor) -> Tensor:
        """(…) token ids → (…, width), float32."""
        tokens = ids.flatten().to(torch.int64).contiguous()
        rows = torch.zeros(len(tokens), -(-self.embedding_dim // 16) * 16)
        call = abi.Call(rows=len(tokens), tokens=tokens.data_ptr())
        call.buffers[HIDDEN] = abi.Buffer(rows.data_ptr(), rows.stride(0))
        self._engine.run(self._ops, call)
        return rows[:, : self.embedding_dim].reshape(*ids.shape, -1)


def _give_up(model: Any, program: Program, engine: Engine) -> None:
    """Frees the model's own copies of the program's weights."""
    decoder = decoder_of(model)
    decoder.embed_tokens = PackedEmbedding(decoder.embed_tokens, program.from_tokens[0], engine)
    for experts in mixtures_of(decoder):
        for name, stack in [*experts.named_parameters(recurse=False)]:  # programs of fewer blocks ask for their shapes
            setattr(experts, name, nn.Parameter(stack.to("meta"), requires_grad=False))
    for name in (name for name in program.weights if name.endswith(".weight")):
        layer = model.get_submodule(name.removesuffix(".weight"))
        if hasattr(layer, "quantization_scheme"):
            round_inputs(layer, stored_input_grids(layer).get(""))  # programs of fewer blocks will ask
            del layer.quantization_scheme
        for part in [*layer._parameters]:
            if part != "bias":
                delattr(layer, part)
