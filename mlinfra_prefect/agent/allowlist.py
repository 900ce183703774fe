"""What a process of ours inherits: an allow-list, so that no credential reaches training code by accident.

The worker's environment holds cloud keys, the Prefect API key and what the user exported years ago. A training gets
none of it, only what a program needs to run here and to reach the network, plus the four variables that let a sweep
recognise it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .specs import AgentSpec

_NAMES: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TMPDIR", "TZ",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    # An operator who fences off GPUs of a shared host does it with these; to drop them would give the GPUs back.
    "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES",
})  # fmt: skip


def inherited(source: Mapping[str, str] | None = None, *, pip: bool = False) -> dict[str, str]:
    """The part of an environment that a process of ours may have.

    Args:
        source: the environment to choose from; default this process's.
        pip: also keep ``PIP_*`` (index, find-links, trusted host): only for processes that run pip.
    """
    found = os.environ if source is None else source
    return {
        name: value
        for name, value in found.items()
        if name in _NAMES or name.startswith("LC_") or (pip and name.startswith("PIP_"))
    }


def marks(spec: AgentSpec) -> dict[str, str]:
    """The variables that every process of a lease carries; the deadline is epoch seconds as text, or empty."""
    return {
        "MLINFRA_LEDGER_ID": spec.ledger_id,
        "MLINFRA_LEASE_ID": spec.lease_id,
        "MLINFRA_ATTEMPT": str(spec.attempt),
        "MLINFRA_DEADLINE": "" if spec.deadline is None else repr(spec.deadline),
    }
