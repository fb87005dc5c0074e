"""OpenVINO graphs: constants against the grid's own values, whole models run. Skipped where openvino is missing."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from feeds import inputs_for
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gguf_write import on_grid, with_tokenizer
from tiny import build

from gossamer.core.errors import ModelError
from gossamer.models.open import Opened
from gossamer.models.openvino_constants import unpacked, widened
from gossamer.models.openvino_write import EXACT, computed, expected, write_openvino
from gossamer.models.packed import QuantizedTensor, Scheme
from gossamer.models.structure import write_matrix

openvino = pytest.importorskip("openvino", reason="the optional package openvino is not installed")


def evaluated(node: Any, folder: Path) -> torch.Tensor:
    """The value of a constant expression, after it was written to a file and read back."""
    openvino.save_model(openvino.Model([node], []), folder / "constant.xml", compress_to_fp16=False)
    compiled = openvino.Core().compile_model(folder / "constant.xml", "CPU", dict(EXACT))
    return torch.from_numpy(compiled([])[0].copy())


def stored(nodes: list[Any]) -> dict[str, int]:
    """Bytes of the constants under the last of `nodes`, by OpenVINO's type; shapes left out."""
    sizes: Counter[str] = Counter()
    for node in openvino.Model([nodes[-1]], []).get_ops():
        kind = node.get_element_type()
        if node.get_type_name() == "Constant" and kind.get_type_name() != "i64":
            count = 1
            for size in node.shape:
                count *= size
            sizes[kind.get_type_name()] += -(-count * kind.bitwidth // 8)
    return dict(sizes)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**20), bits=st.integers(2, 8), group=st.sampled_from([None, 8, 24]),
    symmetric=st.booleans(), looked_up=st.booleans(), rows=st.integers(1, 5),
)  # fmt: skip
def test_the_constants_give_the_grid_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    bits: int,
    group: int | None,
    symmetric: bool,
    looked_up: bool,
    rows: int,
) -> None:
    tensor = on_grid(Scheme(bits, group, symmetric), rows, 72 if group else 45, seed)
    nodes = unpacked(tensor, looked_up)
    assert torch.equal(evaluated(nodes[-1], tmp_path_factory.mktemp("constant")), tensor.dequantize())


@pytest.mark.parametrize(
    ("bits", "symmetric", "looked_up", "sizes"),
    [
        (2, True, False, {"u2": 64 + 1, "f16": 64}), (2, False, False, {"u2": 64 + 8, "f16": 64}),
        (2, True, True, {"i4": 128, "f16": 64}), (3, True, False, {"i4": 128, "f16": 64}),
        (3, False, False, {"u4": 128 + 16, "f16": 64}), (4, True, False, {"i4": 128, "f16": 64}),
        (4, False, True, {"u4": 128 + 16, "f16": 64}), (6, True, False, {"i8": 256, "f16": 64}),
        (8, False, False, {"i8": 256 + 32, "f16": 64}),
    ],
)  # fmt: skip
def test_codes_take_the_nearest_type_that_is_multiplied_packed(
    bits: int, symmetric: bool, looked_up: bool, sizes: dict[str, int]
) -> None:
    assert stored(unpacked(on_grid(Scheme(bits, 8, symmetric), 4, 64, 0), looked_up)) == sizes


def test_other_values_are_kept_at_16_bits(tmp_path: Path) -> None:
    for values, kind in ((torch.randn(3, 5).half(), "f16"), (torch.randn(3, 5).bfloat16() * 2**-40, "bf16")):
        nodes = widened(values.float())
        assert stored(nodes) == {kind: 30}
        assert torch.equal(evaluated(nodes[-1], tmp_path), values.float())


def compressed(name: str, bits: int = 4, symmetric: bool = True) -> tuple[Opened, dict[str, QuantizedTensor]]:
    """A random model, all of whose linear and embedding layers are on a grid of whole rows."""
    opened = with_tokenizer(build(name), None)
    codes = {}
    for number, layer in enumerate(opened.hierarchy.layers()):
        if layer.kind not in ("linear", "embedding") or layer.tied_to is not None:
            continue
        grid = on_grid(Scheme(bits, None, symmetric), layer.rows, layer.columns, number)
        tensor = QuantizedTensor(grid.scheme, layer.shape, grid.codes, (grid.scales.float() / 64).half(), grid.zeros)
        write_matrix(opened.model, layer, tensor.dequantize())
        codes[layer.tensor] = tensor
    return opened, codes


def precisions(folder: Path, graph: str) -> Counter[str]:
    """What the CPU plugin runs, by kind of operation and the precision of what it reads."""
    runtime = openvino.Core().compile_model(folder / f"{graph}.xml", "CPU", dict(EXACT)).get_runtime_model()
    infos = [node.get_rt_info() for node in runtime.get_ops()]
    return Counter(f"{info['layerType'].astype(str)} {info['runtimePrecision'].astype(str)}" for info in infos)


@pytest.mark.parametrize(
    ("name", "bits", "symmetric", "unread"),
    [
        ("llava", 4, False, "vision_tower"),  # the last block, as its output is not asked for, and positions
        ("owlv2", 3, True, "position_embedding"),  # looked up at fixed places: the converter does that at once
        ("vit", 2, True, ""),
    ],
)
def test_models_compute_the_same_from_their_codes(
    tmp_path: Path, name: str, bits: int, symmetric: bool, unread: str
) -> None:
    opened, codes = compressed(name, bits, symmetric)
    inputs = inputs_for(name, opened.model)
    before = expected(opened.model, inputs)
    written = write_openvino(opened, codes, inputs, tmp_path)
    own, found = expected(opened.model, inputs), computed(tmp_path, opened.model, inputs, EXACT)
    assert own.keys() == found.keys() == before.keys()
    for key, value in own.items():
        assert found[key].shape == value.shape
        assert torch.allclose(found[key], value, atol=1e-4 * float(value.abs().max()))
        assert torch.allclose(before[key], value, atol=1e-2 * float(value.abs().max()))
    kind = {2: "u2", 3: "i4", 4: "u4"}[bits]
    assert written.types[kind] > 0
    notes = [note for note in written.notes if "not read by the graphs" in note]
    assert len(notes) == bool(unread)
    assert all(unread in note for note in notes)
    ran = sum((precisions(tmp_path, path.stem) for path in tmp_path.glob("*.xml")), Counter())
    assert ran[f"FullyConnected {kind}"] > 0
    # Every product reads its codes, none was expanded when the graph was loaded, but single rows on some processors.
    single_rows = sum(tensor.shape[0] == 1 for tensor in codes.values())
    assert ran["FullyConnected f32"] <= single_rows


@dataclass(frozen=True)
class Decoder:
    """A written text model with a tied table, and inputs of which one row is padded in front."""

    opened: Opened
    codes: dict[str, QuantizedTensor]
    inputs: dict[str, torch.Tensor]
    folder: Path


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    opened, codes = compressed("qwen2")
    ids = inputs_for("qwen2", opened.model)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    one = Decoder(opened, codes, {"input_ids": ids, "attention_mask": mask}, tmp_path_factory.mktemp("decoder"))
    write_openvino(opened, codes, one.inputs, one.folder)
    return one


def test_text_is_read_at_once_and_in_steps_whatever_stands_in_front(decoder: Decoder) -> None:
    found = computed(decoder.folder, decoder.opened.model, decoder.inputs, EXACT)
    wanted = expected(decoder.opened.model, decoder.inputs)
    assert wanted["logits"].shape == (11, 96)
    for name in ("logits", "logits in steps"):
        assert torch.allclose(found[name], wanted[name], atol=1e-4 * float(wanted[name].abs().max()))


def test_a_tied_table_is_stored_once_and_stays_packed(decoder: Decoder) -> None:
    graph = openvino.Core().read_model(decoder.folder / "openvino_model.xml")
    tables = [node for node in graph.get_ops() if node.get_type_name() == "Constant" and list(node.shape) == [96, 16]]
    assert [table.get_element_type().get_type_name() for table in tables] == ["i4"]
    ran = precisions(decoder.folder, "openvino_model")
    assert ran["Gather i4"] == 1
    assert ran["FullyConnected i4"] == len(decoder.codes)  # one table is both looked up and multiplied with
    assert ran["FullyConnected f32"] == 0


def test_wrong_codes_are_noticed(decoder: Decoder) -> None:
    """The comparison looks at the files: it sees that a layer computes with other codes than the model."""
    name = next(name for name in decoder.codes if name.endswith("down_proj.weight"))
    weight = decoder.opened.model.get_parameter(name)
    weight.mul_(-1)
    found = computed(decoder.folder, decoder.opened.model, decoder.inputs, EXACT)
    wanted = expected(decoder.opened.model, decoder.inputs)
    weight.mul_(-1)
    assert float((wanted["logits"] - found["logits"]).abs().max()) > 1e-2 * float(wanted["logits"].abs().max())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mixtral", "converted to OpenVINO's operations: No conversion rule found"),
        ("qwen2_vl", "takes mm_token_type_ids beside its text"),
    ],
)
def test_models_without_a_graph_are_refused_in_one_sentence(tmp_path: Path, name: str, said: str) -> None:
    opened = with_tokenizer(build(name), None)
    with pytest.raises(ModelError, match=said) as caught:
        write_openvino(opened, {}, inputs_for(name, opened.model), tmp_path)
    assert "\n" not in str(caught.value)
