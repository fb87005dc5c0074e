"""Packed weights: the layout loses nothing, and every kernel multiplies by what the codes stand for."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from gossamer.engine.gpu.layers import PackedEmbedding, PackedLinear
from gossamer.engine.gpu.packed import PackedWeight
from gossamer.engine.gpu.product import WAYS, Way, has_triton, product, run, way_for
from gossamer.models.low_rank import LowRank
from gossamer.models.packed import QuantizedTensor, Scheme

CUDA = torch.cuda.is_available() and has_triton()
ON_GPU = pytest.mark.skipif(not CUDA, reason="needs a GPU and Triton")
GRIDS = [
    (Scheme(4, 128), (40, 384)), (Scheme(4, 32, symmetric=False), (37, 96)), (Scheme(8), (19, 100)),
    (Scheme(3, 24, symmetric=False), (33, 48)), (Scheme(2, 16), (16, 64)), (Scheme(2, 8), (16, 64)),
    (Scheme(5, symmetric=False), (24, 72)), (Scheme(6, 4), (9, 20)), (Scheme(7, 40), (65, 120)),
    (Scheme(8, 32), (130, 576)),
]  # fmt: skip


def drawn(scheme: Scheme, shape: tuple[int, int], device: str = "cpu") -> QuantizedTensor:
    draw = torch.Generator().manual_seed(scheme.bits)
    groups = (shape[0], scheme.groups(shape[1]))
    codes = torch.randint(scheme.low, scheme.high + 1, shape, generator=draw, dtype=torch.int8)
    scales = (torch.rand(groups, generator=draw) + 0.5).half() * 0.1
    scales[::2] *= -1
    zeros = torch.randint(scheme.low, scheme.high + 1, groups, generator=draw, dtype=torch.int8)
    return QuantizedTensor(scheme, shape, codes, scales, None if scheme.symmetric else zeros).to(device)


@pytest.mark.parametrize(("scheme", "shape"), GRIDS)
def test_nothing_is_lost_by_packing(scheme: Scheme, shape: tuple[int, int]) -> None:
    tensor = drawn(scheme, shape)
    weight = PackedWeight.pack(tensor)
    assert torch.equal(weight.dense(), tensor.dequantize())
    rows = torch.tensor([5, 0, 5])
    assert torch.equal(weight.take(rows).dense(), tensor.dequantize()[rows])


def test_words_are_as_dense_as_said() -> None:
    for bits, width in ((2, 2), (3, 4), (4, 4), (5, 8), (8, 8)):
        weight = PackedWeight.pack(drawn(Scheme(bits, 128), (16, 256)))
        assert weight.layout.width == width
        assert weight.words.nbytes == 16 * 256 * width // 8
        assert weight.bytes == weight.words.nbytes + 2 * 16 * 2


def test_groups_that_fill_no_word_are_refused() -> None:
    with pytest.raises(ValueError, match="groups of 3 columns"):
        PackedWeight.pack(drawn(Scheme(4, 3), (4, 9)))


@pytest.mark.parametrize(("scheme", "shape"), GRIDS)
def test_a_layer_multiplies_by_what_its_codes_stand_for(scheme: Scheme, shape: tuple[int, int]) -> None:
    tensor = drawn(scheme, shape)
    draw = torch.Generator().manual_seed(0)
    bias, x = torch.randn(shape[0], generator=draw).double(), torch.randn(2, 3, shape[1], generator=draw).double()
    left, right = torch.randn(shape[0], 2, generator=draw).half(), torch.randn(2, shape[1], generator=draw).half()
    layer = PackedLinear(PackedWeight.pack(tensor), bias, LowRank(left, right), torch.float64)
    expected = nn.functional.linear(x, tensor.dequantize().double() + left.double() @ right.double(), bias)
    torch.testing.assert_close(layer(x), expected)  # float64: the order of a sum makes no difference to speak of
    assert torch.equal(layer.to(torch.bfloat16).packed.dense(), tensor.dequantize())


def test_an_embedding_looks_up_scaled_rows() -> None:
    tensor = drawn(Scheme(4, 8), (20, 24))
    layer = PackedEmbedding(PackedWeight.pack(tensor), 3.0, torch.float32)
    ids = torch.tensor([[1, 19], [0, 1]])
    torch.testing.assert_close(layer(ids), 3 * tensor.dequantize()[ids])


def test_every_number_of_rows_has_a_way() -> None:
    for width, ways in WAYS.items():
        assert [way.most for way in ways] == sorted(way.most for way in ways)
        assert way_for(1, width) == ways[0]
        assert way_for(10**6, width) == ways[-1]


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected).abs().max() / expected.abs().max())


@ON_GPU
@pytest.mark.parametrize(("scheme", "shape"), GRIDS)
@pytest.mark.parametrize("count", [1, 3, 16, 100])
def test_all_kernels_multiply_alike(scheme: Scheme, shape: tuple[int, int], count: int) -> None:
    tensor = drawn(scheme, shape, "cuda")
    weight = PackedWeight.pack(tensor)
    x = torch.randn(count, shape[1], generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    expected = x.float() @ tensor.dequantize().T
    ways: list[tuple[Any, dict[str, int]]] = [
        ("matrix", {"splits": 1, "rows": 32, "count": 16, "words": 16}), ("matrix", {"splits": 3}), ("expand", {}),
    ]  # fmt: skip
    for kernel, tiles in ways + [("vector", {"rows": 2})] * (count == 1):
        assert error(run(Way(count, kernel, tiles), x, weight), expected) < 1e-2, kernel
    assert error(product(x, weight), expected) < 1e-2


@ON_GPU
def test_a_single_row_is_multiplied_exactly_but_for_the_output() -> None:
    tensor = drawn(Scheme(4, 32, symmetric=False), (64, 4096), "cuda")
    x = torch.randn(1, 4096, generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    expected = (x.double() @ tensor.dequantize().double().T).bfloat16()
    found = product(x, PackedWeight.pack(tensor))
    steps = (found.view(torch.int16).int() - expected.view(torch.int16).int()).abs()
    assert int(steps.max()) <= 1  # the last bit of bfloat16, where sums in another order fall on the other side


@ON_GPU
def test_all_ways_of_the_table_run_at_the_sizes_they_are_for() -> None:
    for (bits, group), count in itertools.product(((2, 64), (4, 128), (4, 32), (8, None)), (1, 2, 17, 64, 300)):
        tensor = drawn(Scheme(bits, group), (1536, 576) if group != 128 else (576, 1536), "cuda")
        x = torch.randn(count, tensor.shape[1]).bfloat16().cuda()
        assert error(product(x, PackedWeight.pack(tensor)), x.float() @ tensor.dequantize().T) < 1e-2
