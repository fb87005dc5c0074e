"""Measured and estimated numbers with units, spread, count and provenance."""

from pydantic import BaseModel, ConfigDict


class Measure(BaseModel):
    """One measured value with its interval.

    `low` and `high` bound a 95 % interval made by `method` (e.g. `wilson`, `bootstrap over windows`, `exact`), or are
    quartiles where `method` says so, as for times; `n` is the number of independent items behind it.
    """

    model_config = ConfigDict(frozen=True)

    value: float
    low: float
    high: float
    n: int
    method: str

    @classmethod
    def exact(cls, value: float, n: int = 1) -> "Measure":
        """A counted value without spread, such as bytes."""
        return cls(value=value, low=value, high=value, n=n, method="exact")
