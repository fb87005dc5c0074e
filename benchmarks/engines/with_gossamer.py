"""Our sides: the native engine with wide inputs and narrow ones, and our loop over transformers' modules."""

import torch
from task import Task, contest

from gossamer.engine.native.running import open_native
from gossamer.engine.native.stepper import Precision


def main() -> None:
    """Runs one side."""
    task = Task.read()
    torch.set_num_threads(task.threads)
    torch.set_grad_enabled(False)
    path = task.dense if task.bits == 16 else task.packed
    opened, native = open_native(path, Precision(wide="8-bit inputs" not in task.side))
    torch.set_num_threads(1)  # as `gossamer generate` does
    stepper = native(opened.model)

    def read(prompt: list[int]) -> int:
        return int(stepper.prefill([{"input_ids": torch.tensor([prompt])}])[0].argmax())

    def step(token: int) -> int:
        return int(stepper.step([token], [True])[0].argmax())

    contest(
        task, read, step,
        weight_bytes=native.weight_bytes, bytes_per_token=native.bytes_per_token, isa=native.engine.isa,
        bandwidth_bytes_per_s=native.engine.bandwidth(native.bytes_per_token),
    )  # fmt: skip


if __name__ == "__main__":
    main()
