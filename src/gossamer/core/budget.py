"""What the result must respect."""

from pydantic import BaseModel, ConfigDict, Field


class Budget(BaseModel):
    """Hard limits and a quality floor against the baseline.

    `weight_bytes`: all tensors of the exported checkpoint, scales and padding included.
    `max_loss_percent`: how far the task's main figure may fall behind the unchanged model's, in percent of the
    baseline's value for perplexity-like figures and in percentage points for accuracies.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_bytes: int | None = Field(default=None, gt=0)
    max_loss_percent: float | None = Field(default=None, ge=0)
