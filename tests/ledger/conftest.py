"""Other processes open the stores of `sqlite_stores` too, so it is a module that they can import."""

from __future__ import annotations

import sys
from pathlib import Path

# pytest's importlib mode imports no siblings; a spawned process gets this path from its parent.
sys.path.insert(0, str(Path(__file__).parent))
