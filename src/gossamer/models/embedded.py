"""What ships inside the package: the embedded models, and the configs of well-known ones for estimates."""

from pathlib import Path

_HERE = Path(__file__).parent
_MODELS = _HERE / "embedded"
_CONFIGS = _HERE / "configs"


def embedded_models() -> tuple[str, ...]:
    """Names of the models that ship with weights, sorted."""
    return tuple(sorted(path.parent.name for path in _MODELS.glob("*/config.json")))


def embedded_model(name: str) -> Path | None:
    """The directory of an embedded model, or None."""
    return _MODELS / name if name in embedded_models() else None


def known_configs() -> tuple[str, ...]:
    """Names of the models whose configuration ships, without weights, sorted."""
    return tuple(sorted(path.stem for path in _CONFIGS.glob("*.json")))


def known_config(name: str) -> Path | None:
    """The config file of a well-known model, or None."""
    return _CONFIGS / f"{name}.json" if name in known_configs() else None
