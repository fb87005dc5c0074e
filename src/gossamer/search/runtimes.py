"""What each runtime runs in low bits, so that a plan is one that it can serve.

Layers that a runtime has as one matrix (q/k/v, gate/up) share a setting under every runtime: they are one unit, and
where one of them is not served all of them stay at 16 bits.
"""

from dataclasses import dataclass

from gossamer.models.containers import Containers
from gossamer.models.hierarchy import Layer
from gossamer.models.packed import Scheme
from gossamer.search.front import UNIFORM
from gossamer.search.units import EIGHT, GRID


@dataclass(frozen=True)
class Runtime:
    """One runtime: the schemes that linear layers may take, and of these the `uniform` settings to compare with.

    `packed`: only linear layers whose codes are packed, no tables and no heads. `block`: columns that must share a
    scale, as its files have them.
    """

    name: str
    grid: tuple[Scheme, ...] = GRID
    uniform: tuple[Scheme, ...] = UNIFORM
    packed: bool = False
    block: int | None = None

    def serves(self, containers: Containers, layer: Layer, scheme: Scheme) -> bool:
        """Whether it runs a layer on this grid, which has been fitted to the layer's columns."""
        if self.packed:
            packed = containers.form(layer, scheme) == "pack-quantized"
            return packed and scheme in self.grid and not layer.path.startswith("head.")
        if self.block is not None:
            table = layer.kind == "embedding" and scheme == EIGHT
            return (table or scheme in self.grid) and layer.columns % self.block == 0
        return True


_BLOCKS = (Scheme(4, 32), Scheme(5, 32), Scheme(8, 32))

RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime("transformers"),
        # compressed-tensors' WNA16 scheme in vLLM: 4 or 8 bits, packed, groups of 32, 64 or 128 columns or whole rows.
        Runtime(
            "vllm",
            (Scheme(4, 32), Scheme(4, 64), Scheme(4, 128), Scheme(8, 128), Scheme(8, None)),
            (Scheme(4, 64), Scheme(4, 128), Scheme(8, None)),
            packed=True,
        ),
        # ggml's Q4_0, Q5_0 and Q8_0 hold such codes as they are, in the same bytes.
        Runtime("llama.cpp", _BLOCKS, _BLOCKS, block=32),
        # What OpenVINO's graphs hold in the same bytes (u2, i4, i8): 3 bits would take 4 there, 5 and 6 bits 8.
        Runtime(
            "openvino",
            (Scheme(2, 32), Scheme(2, 64), Scheme(4, 32), Scheme(4, 64), Scheme(8, None)),
            (Scheme(2, 64), Scheme(4, 64), Scheme(8, None)),
        ),
    )
}
