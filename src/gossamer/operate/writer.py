"""Opening a model that is to write, on the engine that runs it fastest."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

from gossamer.core.errors import DeviceError, ModelError
from gossamer.engine.stepping import Stepper, StepperOf
from gossamer.engine.threads import torch_threads
from gossamer.models.open import Opened, open_model

Engine = Literal["auto", "native", "torch"]
"""`native`: the packed weights as they are, in C++; `torch`: transformers' code on dense weights; `auto`: the first of
them that runs the model here."""


@dataclass(frozen=True, eq=False)
class Writer:
    """An open model and what steps through it. `engine` says which engine that is, and why not the native one."""

    opened: Opened
    stepper_of: StepperOf = Stepper
    engine: dict[str, str] = field(default_factory=dict)

    def torch_threads(self) -> AbstractContextManager[None]:
        """How many threads torch is to have while this writes: one beside the native engine, else all."""
        return torch_threads(1) if self.engine.get("name") == "native" else nullcontext()


def open_writer(ref: str, engine: Engine = "auto") -> Writer:
    """The model `ref`, ready to write. Raises `ModelError` unless it continues text, and for `native` if that engine
    does not run it, or `DeviceError` if it cannot be built here."""
    reason = {}
    if engine != "torch":
        from gossamer.engine.native.lower import NotServedError
        from gossamer.engine.native.running import open_native

        try:
            opened, native = open_native(ref)
            return Writer(_checked(opened, ref), native, {"name": "native", "isa": native.engine.isa})
        except (NotServedError, DeviceError) as error:
            if engine == "native":
                raise
            reason = {"not_native": str(error)}
    return Writer(_checked(open_model(ref), ref), Stepper, {"name": "torch", **reason})


def _checked(opened: Opened, ref: str) -> Opened:
    if getattr(opened.config, "is_encoder_decoder", False) or not getattr(opened.model, "can_generate", bool)():
        raise ModelError(f"{ref} does not continue text: give a language or vision-language model")
    return opened
