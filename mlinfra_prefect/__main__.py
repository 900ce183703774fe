"""``mlinfra-prefect`` and ``python -m mlinfra_prefect``."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; never raises.

    Args:
        argv: the words after the program's name; None: the process's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    from mlinfra_prefect.cli.outcome import guarded

    return guarded(lambda: _run(words))


def _run(words: list[str]) -> int:
    # The listings that scripts ask for again and again go without the parser: it would cost more than the listing.
    if words[:1] in (["ps"], ["endpoints"]) and set(words[1:]) <= {"--json", "--all"}:
        from mlinfra_prefect.cli import listing

        verb = listing.ps if words[0] == "ps" else listing.endpoints
        return verb(everything="--all" in words, as_json="--json" in words)
    from mlinfra_prefect.cli.app import run

    return run(words)


if __name__ == "__main__":
    sys.exit(main())
