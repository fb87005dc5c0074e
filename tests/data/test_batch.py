"""Batches in parts."""

import torch

from gossamer.data.batch import Batch


def test_parts_hold_their_examples_and_what_is_common() -> None:
    batch = Batch(
        {"input_ids": torch.arange(10).reshape(5, 2), "scale": torch.tensor(3.0), "grid": torch.arange(7)},
        torch.arange(5),
        (4, 5, 6, 7, 8),
    )
    parts = list(batch.parts(2))
    assert [part.indices for part in parts] == [(4, 5), (6, 7), (8,)]
    assert torch.equal(torch.cat([part.inputs["input_ids"] for part in parts]), batch.inputs["input_ids"])
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    for part in parts:
        assert part.inputs["scale"] is batch.inputs["scale"]
        assert part.inputs["grid"] is batch.inputs["grid"]
    (whole,) = batch.parts(9)
    assert whole.size == 5
    empty = Batch(batch.inputs, torch.empty(0), batch.indices)
    assert all(part.labels is empty.labels for part in empty.parts(3))
