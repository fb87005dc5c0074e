"""Opening a model that is to write, on the engine that runs it fastest."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from gossamer.core.errors import DeviceError, ModelError, SettingError
from gossamer.engine.forward import named_device
from gossamer.engine.stepping import Stepper, StepperOf
from gossamer.engine.threads import torch_threads
from gossamer.models.open import Opened, open_model
from gossamer.operate.cache import KeyValues

Engine = Literal["auto", "native", "torch"]
"""`native`: the packed weights as they are, in C++; `torch`: transformers' code on dense weights; `auto`: the first of
them that runs the model here, and on a GPU transformers' code on packed weights, its steps recorded."""


@dataclass(frozen=True, eq=False)
class Writer:
    """An open model and what steps through it. `engine` says which engine that is, why not the native one, and on a
    GPU which GPU, what became of the model's packed layers, and why its steps are not recorded, if so."""

    opened: Opened
    stepper_of: StepperOf = Stepper
    engine: dict[str, Any] = field(default_factory=dict)
    keeper: KeyValues | None = None

    def torch_threads(self) -> AbstractContextManager[None]:
        """How many threads torch is to have while this writes: one beside the native engine, else all."""
        return torch_threads(1) if self.engine.get("name") == "native" else nullcontext()


def open_writer(ref: str, engine: Engine = "auto", on: str = "cpu", keeper: KeyValues | None = None) -> Writer:
    """The model `ref`, ready to write on the device `on`. With a `keeper` torch runs it, on the processor.

    Raises `ModelError` unless it continues text, and for `native` if that engine does not run it, or `DeviceError` if
    it cannot be built here or the device is not at hand, and `SettingError` for `native` on a GPU, and for either with
    a keeper.
    """
    if keeper is not None:
        return _keeping(ref, engine, on, keeper)
    if on != "cpu":
        return _on_gpu(ref, engine, on)
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


def _keeping(ref: str, engine: Engine, on: str, keeper: KeyValues) -> Writer:
    if engine == "native":
        raise SettingError("the native engine keeps all of past tokens: give --kv none, or take --engine torch")
    if on != "cpu":
        raise SettingError(f"--kv keeps less of past tokens on the processor, not yet on {on}: give --kv none there")
    return Writer(_checked(open_model(ref), ref), partial(Stepper, keeper=keeper), {"name": "torch"}, keeper)


def _on_gpu(ref: str, engine: Engine, on: str) -> Writer:
    if engine == "native":
        raise SettingError(f"the native engine computes on the processor, not on {on}: give --engine auto or torch")
    device = named_device(on)
    from gossamer.engine.gpu.layers import move
    from gossamer.engine.gpu.running import DTYPE, open_gpu

    said = {"device": str(device), "floats": str(DTYPE).removeprefix("torch.")}
    if engine == "torch":
        opened = _checked(open_model(ref), ref)
        move(opened.model, DTYPE, device)
        return Writer(opened, Stepper, {"name": "torch", **said})
    opened, captured, report = open_gpu(ref, device)
    reason = {} if captured.not_recorded is None else {"not_recorded": captured.not_recorded}
    return Writer(_checked(opened, ref), captured, {"name": "gpu", **said, **asdict(report), **reason})


def _checked(opened: Opened, ref: str) -> Opened:
    if getattr(opened.config, "is_encoder_decoder", False) or not getattr(opened.model, "can_generate", bool)():
        raise ModelError(f"{ref} does not continue text: give a language or vision-language model")
    return opened
