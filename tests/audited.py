"""Say in words what pip-audit found, for ``make audit``: a package that could not be looked up has not been audited."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def told(report: dict[str, Any]) -> tuple[str, int]:
    """Return the lines to print, and the exit code: 1 where a vulnerability is known."""
    entries = report.get("dependencies", [])
    looked_up = [each for each in entries if "skip_reason" not in each]
    if not looked_up:
        return "audit: the advisory service knows none of the packages, or does not answer; nothing was audited", 0
    lines = [
        f"{each['name']} {each['version']}: {found['id']}, mended in {found['fix_versions'] or 'nothing'}"
        for each in looked_up
        for found in each.get("vulns", [])
    ]
    total = f"audit: {len(looked_up)} of {len(entries)} packages looked up, {len(lines)} known vulnerabilities"
    return "\n".join([*lines, total]), 1 if lines else 0


def main(path: Path) -> int:
    """Print it; a file that is not there, or is broken, is an audit that did not take place."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        found = {}
    text, code = told(found)
    sys.stdout.write(f"{text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
