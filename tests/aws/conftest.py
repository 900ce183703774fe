"""The tests of what AWS does for us; what several of them share lies beside them."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode imports no siblings.
sys.path.insert(0, str(Path(__file__).parent))
