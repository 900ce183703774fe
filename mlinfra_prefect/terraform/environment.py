"""The environment of every Terraform process: an allow-list, because an inherited variable can change what it does.

``TF_CLI_ARGS_apply=-lock=false`` injects arguments, ``TF_VAR_*`` values, ``TF_LOG`` writes secrets to stderr, and
``TF_WORKSPACE`` and ``TF_DATA_DIR`` move the state. None of them, and no credential, reaches Terraform unless the
caller names it. What is passed is also what a ``local-exec`` child of the module sees.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlinfra_prefect.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

INHERITED = frozenset({
    "PATH", "HOME", "LANG", "LANGUAGE", "TMPDIR", "TZ",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "NIX_SSL_CERT_FILE",
})  # fmt: skip
"""Names copied from the parent's environment, beside every ``LC_*``: finding programs, locale, proxies, CA bundles."""

REFUSED_PREFIXES = ("TF_CLI_ARGS", "TF_VAR_", "TF_LOG", "TF_WORKSPACE", "TF_DATA_DIR")
"""Names that would change what a recorded operation does; not even the caller may pass them."""

FIXED = {"TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1"}


def environment(parent: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Returns the whole environment for a Terraform process.

    Args:
        parent: what to filter, usually ``os.environ``.
        extra: what the caller adds by name (lease ids, credentials of the environment). It wins over the allow-list.

    Raises:
        InvalidInput: ``extra`` names a variable that changes Terraform's arguments, variables, logs or state.
    """
    for name in extra:
        if name.startswith(REFUSED_PREFIXES):
            raise InvalidInput(name, "this variable may not be passed to Terraform.", "Use the request's own fields.")
    passed = {name: value for name, value in parent.items() if name in INHERITED or name.startswith("LC_")}
    # A name that points nowhere makes Terraform print a warning box for every command; a missing cache makes it fail.
    config = parent.get("TF_CLI_CONFIG_FILE", "")
    if config and Path(config).is_file():
        passed["TF_CLI_CONFIG_FILE"] = config
    cache = parent.get("TF_PLUGIN_CACHE_DIR", "")
    if cache and Path(cache).is_dir():
        passed["TF_PLUGIN_CACHE_DIR"] = cache
    return {**passed, **extra, **FIXED}
