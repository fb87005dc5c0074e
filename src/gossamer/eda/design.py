"""Verilog to work on: the files, the module on top, and what its parameters are."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gossamer.core.errors import SettingError
from gossamer.core.files import digest, file_digest

_VERILOG = (".v", ".sv")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*")
Value = int | str


@dataclass(frozen=True)
class Design:
    """`sources` are Verilog files and what they read: other files (`.vh`, `.hex`) are there for `include` and
    `$readmemh`, which find them by bare name, as tools run in one flat folder with a copy of all of them.

    `parameters` override those of the module `top` (an int of 32 bits, or a string); `defines` are preprocessor macros.
    Raises `SettingError` for a missing file, two files of one name, or a name that Verilog does not allow.
    """

    sources: Sequence[Path]
    top: str
    parameters: Mapping[str, Value] = field(default_factory=dict)
    defines: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", tuple(Path(source) for source in self.sources))
        for name in (self.top, *self.parameters, *self.defines):
            if not _NAME.fullmatch(name):
                raise SettingError(f"{name!r} is not a Verilog name: use letters, digits and _")
        for name, value in {**self.parameters, **self.defines}.items():
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise SettingError(f"{name} of {self.top} is {value!r}: give an int or a string")
            if isinstance(value, int) and not -(1 << 31) <= value < 1 << 31:
                raise SettingError(f"{name} of {self.top} is {value}: give at most 32 bits, and put tables into files")
            if isinstance(value, str) and re.search(r'["\\\n]', value):
                raise SettingError(f"{name} of {self.top} has a quote, backslash or line break, which tools read apart")
        seen: dict[str, Path] = {}
        for source in self.sources:
            if not source.is_file():
                raise SettingError(f"there is no Verilog source {source}")
            if re.search(r"\s", source.name):
                raise SettingError(f"{source} has a space in its file name, which the tools cannot read: rename it")
            if source.name in seen:
                raise SettingError(f"{source} and {seen[source.name]} have one name: give each source its own")
            seen[source.name] = source
        if not self.verilog:
            raise SettingError(f"{self.top} has no source that ends in .v or .sv")

    @property
    def verilog(self) -> list[str]:
        """The names of the files that tools are given to compile."""
        return [source.name for source in self.sources if source.suffix in _VERILOG]

    @property
    def names(self) -> dict[str, str]:
        """The user's path of each file, by bare name: for messages."""
        return {source.name: str(source) for source in self.sources}

    @property
    def key(self) -> str:
        """Changes with whatever can change what the tools do: names and content of files, top, parameters, defines."""
        files = [(source.name, file_digest(source)) for source in self.sources]
        return digest(files, self.top, dict(self.parameters), dict(self.defines))

    def place(self, folder: Path) -> None:
        """Copies the files into a folder."""
        for source in self.sources:
            shutil.copyfile(source, folder / source.name)

    def verilator(self) -> list[str]:
        """The design as arguments of Verilator, to be run where the files are."""
        values = [f"-G{name}={_quoted(value)}" for name, value in self.parameters.items()]
        return ["--top-module", self.top, *values, *self._defines(), *self.verilog]

    def icarus(self) -> list[str]:
        """The design as arguments of Icarus."""
        values = [f"-P{self.top}.{name}={_quoted(value)}" for name, value in self.parameters.items()]
        dialect = "-g2012" if any(name.endswith(".sv") for name in self.verilog) else "-g2005"
        return [dialect, "-s", self.top, *values, *self._defines(), *self.verilog]

    def slang(self) -> list[str]:
        """The design as arguments of slang."""
        values = [f"-G{name}={_quoted(value)}" for name, value in self.parameters.items()]
        return ["--top", self.top, *values, *self._defines(), *self.verilog]

    def yosys(self, formal: bool = False) -> list[str]:
        """The Yosys commands that read the design, with its assertions if `formal`, and set up its hierarchy."""
        defines = " ".join(self._defines())
        dialect = {".v": "-formal" if formal else "", ".sv": "-sv -formal" if formal else "-sv"}
        read = [f"read_verilog {dialect[Path(file).suffix]} {defines} {file}" for file in self.verilog]
        values = [f"chparam -set {name} {_in_yosys(value)} {self.top}" for name, value in self.parameters.items()]
        return [*read, *values, f"hierarchy -check -top {self.top}"]

    def _defines(self) -> list[str]:
        return [f"-D{name}={value}" for name, value in self.defines.items()]


def _quoted(value: Value) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _in_yosys(value: Value) -> str:
    return f"32'sh{value % (1 << 32):08x}" if isinstance(value, int) and value < 0 else _quoted(value)
