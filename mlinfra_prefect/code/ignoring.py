"""What never travels, and what the project's own ``.gitignore`` files keep at home.

Secrets come first: a key that slips into a code package is on a rented machine and in a bucket. The names below are
refused whatever the project says; there is no way to include them. A training gets secrets by reference.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

from pathspec import GitIgnoreSpec, Pattern, RegexPattern

if TYPE_CHECKING:
    from pathlib import Path

# Directories that are somebody's machinery, at any depth: rebuilt on the node, or of no use there.
NEVER_DIRECTORIES = (
    ".git", ".hg", ".svn", ".venv*", "venv", "__pycache__", "node_modules", ".mypy_cache", ".ruff_cache",
    ".pytest_cache", ".hypothesis", ".import_linter_cache", ".tox", ".nox", ".cache", ".ipynb_checkpoints",
    ".terraform", ".mlinfra-prefect", ".idea", ".vscode", "*.egg-info", ".eggs", ".aws", ".ssh", ".gnupg", ".kube",
    ".azure", ".gcloud",
)  # fmt: skip
# Compiled files and editor droppings, then secrets.
NEVER_FILES = (
    "*.pyc", "*.pyo", ".DS_Store", ".#*", "*~", "*.swp",
    ".env", ".env.*", ".envrc", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks",
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*",
    ".netrc", ".pypirc", ".git-credentials", ".dockercfg", "*.tfstate", "*.tfstate.*", "*.tfvars", "*.tfvars.json",
    "service-account*.json", "credentials.json", ".htpasswd",
)  # fmt: skip


def never_travels(name: str, *, directory: bool) -> bool:
    """Say whether a file or directory of this name is kept at home whatever the project says. Pure."""
    lowered = name.lower()
    return any(
        fnmatch.fnmatchcase(lowered, pattern.lower()) for pattern in (NEVER_DIRECTORIES if directory else NEVER_FILES)
    )


class GitIgnore:
    """The ``.gitignore`` files that hold for one directory, outermost first, as Git reads them.

    The last word belongs to the deepest file that says anything about a path. An ignored directory is not entered,
    so nothing below it can be taken back: also Git's rule. Git's global and ``.git/info/exclude`` lists are not read,
    because the package must not depend on who packs it.
    """

    def __init__(self, levels: tuple[tuple[Path, GitIgnoreSpec], ...] = ()) -> None:
        self._levels = levels

    @classmethod
    def above(cls, root: Path) -> GitIgnore:
        """Return what the directories from the repository's top down to `root` (not included) say about it."""
        if (root / ".git").exists():
            return cls()
        for top in root.parents:
            if (top / ".git").exists():
                ignore = cls()
                for directory in (top, *reversed([parent for parent in root.parents if top in parent.parents])):
                    ignore = ignore.entering(directory)
                return ignore
        return cls()

    def entering(self, directory: Path) -> GitIgnore:
        """Return the rules inside `directory`: these, plus its own ``.gitignore`` if it has one that can be read."""
        path = directory / ".gitignore"
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        except OSError:
            lines = []
        if not lines:
            return self
        return GitIgnore((*self._levels, (directory, GitIgnoreSpec.from_lines(lines))))

    def ignores(self, path: Path, *, directory: bool) -> bool:
        """Say whether Git would ignore `path`, which lies in the directory these rules were made for."""
        for base, spec in reversed(self._levels):
            relative = path.relative_to(base).as_posix() + ("/" if directory else "")
            for pattern in reversed(spec.patterns):
                if pattern.include is not None and _is_meant(pattern, relative):
                    return bool(pattern.include)
        return False


def _is_meant(pattern: Pattern, relative: str) -> bool:
    """Say whether `pattern` names this very path, as Git asks it, and not only a directory above it.

    `GitIgnoreSpec` answers for whole trees, so ``!conf`` would bring back ``conf/keys/`` that another rule ignores.
    """
    found = pattern.regex.match(relative) if isinstance(pattern, RegexPattern) and pattern.regex else None
    if found is None:
        return False
    if "ps_d" in found.re.groupindex:  # where the directory that was named ends
        return found.end("ps_d") in {-1, len(relative)}
    return not (found.re.pattern.endswith("/") and found.end() == len(relative))  # `a/**` is not `a` itself
