"""Devices: what a machine can hold, move and compute. Presets ship as YAML; users add files of their own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from gossamer.core.described import Described
from gossamer.core.errors import DeviceError

Precision = Literal["float32", "float16", "bfloat16", "int8", "int4"]


class Device(BaseModel):
    """One device. Rates are peaks; what a real job reaches of them is the cost model's business.

    `memory_bytes` is what models and data share; `bandwidth_bytes_per_s` that memory's. `operations_per_s` maps a
    precision to operations a second, a multiply-accumulate counting as two. `disk_bytes_per_s` is sequential reading.
    `memory_joules_per_byte`, `joules_per_operation` (a precision → joules, as for rates) and `power_watts` are given
    where published. `source` says where the figures are from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    source: str
    memory_bytes: int = Field(gt=0)
    bandwidth_bytes_per_s: float = Field(gt=0)
    operations_per_s: dict[Precision, PositiveFloat] = Field(min_length=1)
    disk_bytes_per_s: float = Field(gt=0)
    memory_joules_per_byte: float | None = Field(default=None, gt=0)
    joules_per_operation: dict[Precision, PositiveFloat] = {}
    power_watts: float | None = Field(default=None, gt=0)

    def rate(self, precision: Precision) -> float:
        """Operations a second at `precision`, or at the nearest precision above it that the device lists."""
        return _nearest(self.operations_per_s, precision)

    def joules(self, read: float, operations: float, precision: Precision) -> float | None:
        """Energy of reading so many bytes and computing so many operations; None where the device tells too little.

        By the byte and the operation where both are listed, else `power_watts` for as long as `seconds` says.
        """
        if self.memory_joules_per_byte is not None and self.joules_per_operation:
            each = _nearest(self.joules_per_operation, precision)
            return read * self.memory_joules_per_byte + operations * each
        if self.power_watts is not None:
            return self.power_watts * self.seconds(read, operations, precision)
        return None

    def seconds(self, read: float, operations: float, precision: Precision) -> float:
        """Time of reading so many bytes while computing so many operations, at the peaks: the longer of the two."""
        return max(read / self.bandwidth_bytes_per_s, operations / self.rate(precision))


def _nearest(table: Mapping[Precision, float], precision: Precision) -> float:
    """The entry of a precision, else of the nearest one above it, else below."""
    order: tuple[Precision, ...] = ("int4", "int8", "float16", "bfloat16", "float32")
    start = order.index(precision)
    return next(table[name] for name in (*order[start:], *reversed(order[:start])) if name in table)


DEVICES = Described("device", Device, Path(__file__).parent / "devices", DeviceError)
"""The presets, and how a user's own file is read; raises `DeviceError`."""
