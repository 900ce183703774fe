"""The model's tests share the strategies in `model_strategies`."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode imports no siblings.
sys.path.insert(0, str(Path(__file__).parent))
