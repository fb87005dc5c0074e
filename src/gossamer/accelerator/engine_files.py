"""Engines on disk: YAML with the fields of `IntegerEngine`. Presets ship in `engines/`; users add their own."""

from pathlib import Path

from gossamer.core.described import Described
from gossamer.core.errors import SettingError
from gossamer.dataflow.engine import IntegerEngine

ENGINES = Described("engine", IntegerEngine, Path(__file__).parent / "engines", SettingError)
"""The presets, and how a user's own file is read; raises `SettingError`."""
