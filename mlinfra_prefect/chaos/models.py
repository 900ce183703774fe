"""Two small real models, for the rows that serve: made once per cache, in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("scripts") / "models.py"
NAMES = ("one", "other")


def needs_models() -> str:
    """Why no model can be served here."""
    absent = [name for name in ("sklearn", "skops") if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(absent)}: pip install 'mlinfra_prefect[local]'" if absent else ""


def models_in(cache: Path) -> tuple[Path, ...]:
    """The uploads of two models that answer differently, as a node leaves them. Idempotent.

    Raises:
        CalledProcessError: they cannot be made.
    """
    place = cache / "chaos-models-1"
    if not all((place / name / "versions.json").exists() for name in NAMES):
        subprocess.run([sys.executable, "-P", str(SCRIPT), str(place), *NAMES], check=True)
    return tuple(place / name for name in NAMES)
