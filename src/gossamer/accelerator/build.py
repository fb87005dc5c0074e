"""An engine as a folder to take away: RTL, its instance, constraints, a self-checking bench, a README.

The bench runs a small random transformer block (attention, MLP, norms) on the instance and compares the outer
memory with what the golden machine left there. It is plain Verilog: any simulator takes it.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from gossamer.accelerator.engine_files import ENGINES
from gossamer.accelerator.golden.machine import Machine
from gossamer.accelerator.program import Program, check, lower_prefill
from gossamer.accelerator.shapes import Shape, sample
from gossamer.accelerator.simulate import parameters, sources
from gossamer.core.files import refuse_foreign, write_text, writing_directory
from gossamer.dataflow.cycles.program import schedule_cycles
from gossamer.dataflow.engine import IntegerEngine

BENCH = Path(__file__).parent / "bench" / "gs_bench.v"
TOP = "gossamer_engine"
MARK = "engine.yaml"


def build_job(config: str, out: Path, clock_mhz: float = 200.0) -> dict[str, Any]:
    """Writes the folder `out` for the engine `config`; an older one is replaced.

    Raises:
        GossamerError: an engine that cannot be, one too small for the bench's program, a place that cannot be
        written.
    """
    engine = ENGINES.load(config)
    refuse_foreign(out, MARK)
    program = bench_program(engine)
    memory = program.image()
    rows = np.random.default_rng(0).integers(-8000, 8000, (program.layout["input"].rows, _SHAPE.width))
    program.layout["input"].write(memory, rows)
    check(program.schedule, len(memory), program.most)
    expected = memory.copy()
    Machine(engine, expected).boot(program.address, program.count)
    cycles = schedule_cycles(program.schedule).total
    with writing_directory(out) as folder:
        (folder / "rtl").mkdir()
        (folder / "bench").mkdir()
        for path in sources():
            shutil.copyfile(path, folder / "rtl" / path.name)
        write_text(folder / "rtl" / f"{TOP}.v", instance(engine))
        shutil.copyfile(BENCH, folder / "bench" / BENCH.name)
        write_text(folder / "bench" / "gs_instance.vh", _constants(engine, program, len(memory), 20 * cycles))
        write_text(folder / "bench" / "memory.hex", _hex(memory, engine.bus_bytes))
        write_text(folder / "bench" / "expected.hex", _hex(expected, engine.bus_bytes))
        write_text(folder / "constraints.sdc", _constraints(clock_mhz))
        write_text(folder / MARK, yaml.safe_dump(engine.model_dump(), sort_keys=False))
        write_text(folder / "README.md", _readme(engine, clock_mhz, cycles))
    return {
        "out": str(out),
        "engine": engine.model_dump(),
        "multipliers": engine.multipliers,
        "sram_bytes": engine.sram_bytes,
        "files": sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()),
        "estimated": {"bench_cycles": cycles},
    }


_SHAPE = Shape("bench", 1, 48, 4, 2, 96, 12, gated=True, rotary=True, causal=True, centred=False)


def bench_program(engine: IntegerEngine) -> Program:
    """A random decoder block over 19 rows: every unit and mode but 4-bit weights.

    Raises:
        SettingError: an engine that has no room for it.
    """
    return lower_prefill(sample(_SHAPE, 1, positions=19), engine, rows=19)


def instance(engine: IntegerEngine) -> str:
    """`gs_top` with the engine's numbers, as the module `gossamer_engine`."""
    text = next(path for path in sources() if path.name == "gs_top.v").read_text(encoding="utf-8")
    _, rest = text.split(") (\n", 1)
    ports = rest.split(");\n", 1)[0]
    names = [line.split("//")[0].replace(",", " ").split()[-1] for line in ports.splitlines() if _is_port(line)]
    values = ",\n".join(f"      .{name}({value})" for name, value in parameters(engine).items())
    wires = ",\n".join(f"      .{name}({name})" for name in names)
    widths = ports.replace("8*BUS_BYTES-1", str(8 * engine.bus_bytes - 1)).replace(
        "BUS_BYTES-1", str(engine.bus_bytes - 1)
    )
    return f"""// One engine: gs_top with its numbers. Written by gossamer accelerator build.
`default_nettype none
module {TOP} (
{widths});
  gs_top #(
{values}
  ) engine (
{wires}
  );
endmodule
`default_nettype wire
"""


def _is_port(line: str) -> bool:
    return line.strip().startswith(("input", "output"))


def _constants(engine: IntegerEngine, program: Program, size: int, limit: int) -> str:
    values = {
        "BUS_BYTES": engine.bus_bytes, "BYTES": size, "PROGRAM_ADDRESS": program.address,
        "PROGRAM_COUNT": program.count, "LIMIT": max(limit, 100_000),
    }  # fmt: skip
    return "".join(f"localparam {name} = {value};\n" for name, value in values.items())


def _hex(memory: np.ndarray, word: int) -> str:
    """Words of the bus, one to a line, highest byte first."""
    return "".join(f"{bytes(row[::-1]).hex()}\n" for row in memory.reshape(-1, word))


def _constraints(clock_mhz: float) -> str:
    period = 1e3 / clock_mhz
    return (
        f"create_clock -name clk -period {period:.3f} [get_ports clk_i]\n"
        f"set_input_delay {0.3 * period:.3f} -clock clk [all_inputs]\n"
        f"set_output_delay {0.3 * period:.3f} -clock clk [all_outputs]\n"
        "set_false_path -from [get_ports rst_i]\n"
    )


def _readme(engine: IntegerEngine, clock_mhz: float, cycles: int) -> str:
    rows = "\n".join(f"| {name} | {value} |" for name, value in engine.model_dump().items())
    array = f"{engine.rows} × {engine.columns} cells × {engine.depth}"
    return f"""# Integer transformer engine

`{TOP}` (`rtl/{TOP}.v`): {engine.multipliers} 8-bit multipliers ({array}), {engine.sram_bytes >> 10} KiB of unified
memory in {engine.banks} banks, a bus of {8 * engine.bus_bytes} bits. Verilog-2005, one clock, synchronous reset.

```
            AXI4-Lite                                AXI4
                │                                 ┌────┴────┐
          ┌─────┴─────┐                           │         │
          │  control  │                        ┌──┴───┐ ┌───┴───┐
          └─────┬─────┘                        │ load │ │ store │
          ┌─────┴─────┐ instructions           └┬───┬─┘ └───┬───┘
          │ sequencer ├────────────────────┐    │   │       │
          └─────┬─────┘                    │    │   │       │
       start ┌──┴────────┬─────────┐       │    │   │       │
          ┌──┴───┐   ┌───┴──┐  ┌───┴─┐     │    │   │       │
          │ gemm │   │ norm │  │ add │  parameters, groups, tables
          └──┬───┘   └───┬──┘  └───┬─┘          │           │
          ┌──┴───────────┴─────────┴────────────┴───────────┴──┐
          │ unified memory: {engine.banks} banks of {engine.bank_lines} lines of {engine.line_bytes} bytes{" " * 12}
          └────────────────────────────────────────────────────┘
```

| number | value |
|---|---|
{rows}

## Bench

`bench/gs_bench.v` runs a random transformer block and compares every byte of the outer memory with the golden
model's. It prints PASS; the cycle model says about {cycles} cycles. In a folder with all files of `rtl/` and
`bench/`:

```
iverilog -g2005 -s gs_bench -o bench.vvp *.v && vvp bench.vvp
verilator --binary --timing --top-module gs_bench -Wno-fatal *.v && obj_dir/Vgs_bench
```

## Registers, programs, arithmetic

`docs/accelerator.md` of Gossamer. `constraints.sdc` asks for {clock_mhz:g} MHz.
"""
