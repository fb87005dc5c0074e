"""What the result must respect."""

from pydantic import BaseModel, ConfigDict, Field


class Budget(BaseModel):
    """Hard limits and a quality floor against the baseline.

    `weight_bytes`: all tensors of the exported checkpoint, scales and padding included. `peak_memory_bytes`,
    `latency_ms` and `energy_mj`: estimates of one inference step, the last two on a device (see `dataflow.inference`).
    `max_loss_percent`: how far the task's main figure may fall behind the unchanged model's, in percent of the
    baseline's value for perplexity-like figures and in percentage points for accuracies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bytes: int | None = Field(default=None, gt=0)
    peak_memory_bytes: int | None = Field(default=None, gt=0)
    latency_ms: float | None = Field(default=None, gt=0)
    energy_mj: float | None = Field(default=None, gt=0)
    max_loss_percent: float | None = Field(default=None, ge=0)

    def estimated(self) -> dict[str, float]:
        """The stated limits on what is estimated, by name."""
        limits = self.model_dump(include={"peak_memory_bytes", "latency_ms", "energy_mj"}, exclude_none=True)
        return {name: float(limit) for name, limit in limits.items()}
