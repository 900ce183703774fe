"""Takes a root module apart before any process starts, and copies it into a stack's private directory.

The copy is what makes a stack independent: the module may be edited, moved or deleted while the stack exists. It holds
the module's own files and the local modules that it calls, in the same places relative to each other, and nothing that
would act by itself: no state, no ``*.tfvars`` (values come from the request only), no hidden file except the provider
lock file. Anything that leaves the directories that were allowed is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlinfra_prefect.errors import InvalidInput
from mlinfra_prefect.terraform import blocks
from mlinfra_prefect.terraform.files import write_private

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mlinfra_prefect.terraform.blocks import Block

LOCK_FILE = ".terraform.lock.hcl"
MAXIMUM_BYTES = 16 * 1024 * 1024
MAXIMUM_FILES = 1000

_SKIPPED = re.compile(
    r"^\.(?!terraform\.lock\.hcl$)|\.tfvars(\.json)?$|\.tfstate($|\.)|\.tfplan$|\.tftest\.(hcl|json)$"
)
_NEVER_NEEDS_INIT = {"variable", "output", "locals", "moved", "resource", "data", "provider", "terraform"}
_BUILTIN = '"terraform.io/builtin/terraform"'


@dataclass(frozen=True, slots=True)
class Module:
    """A root module, read but not run.

    Attributes:
        files: relative path in the copy to the file it comes from.
        workdir: where the root module stands in the copy; ``.`` unless it calls modules beside it.
        variables: names of the variables that the root module declares.
        needs_init: False only where Terraform certainly needs no ``init``: no module call, no backend, no provider
            but the built-in one (which is compiled into Terraform; measured with 1.11.4 and 1.15.5).
        has_backend: the module says where its state is kept; otherwise the stack keeps it in a local file.
        providers: raw attribute text of every provider block, by local name and alias (``""`` for none), nested
            attributes as ``assume_role.role_arn``.
    """

    files: Mapping[str, Path]
    workdir: str
    variables: frozenset[str]
    needs_init: bool
    has_backend: bool
    providers: Mapping[tuple[str, str], Mapping[str, str]]

    @property
    def locked(self) -> bool:
        """True where the module brings a provider lock file."""
        return str(Path(self.workdir) / LOCK_FILE) in self.files


def inspect(root: Path, *, within: Path | None = None) -> Module:
    """Reads a root module and the local modules that it calls; starts nothing.

    Args:
        root: the module's directory.
        within: the directory that local modules and links may lie in; default: ``root`` itself.

    Raises:
        InvalidInput: there is no module, a file or a call leaves ``within``, or the module is absurdly large.
    """
    root = root.resolve()
    allowed = (root, *((within.resolve(),) if within else ()))
    directories: list[Path] = []
    waiting = [root]
    while waiting:
        directory = waiting.pop()
        if any(directory.is_relative_to(known) for known in directories):
            continue
        _check_inside(directory, allowed)
        directories.append(directory)
        for path in _files(directory, allowed):
            if path.name.endswith((".tf", ".tf.json")):
                waiting.extend(_called(path))
    top = Path(os.path.commonpath(directories))
    files = {str(path.relative_to(top)): path for directory in directories for path in _files(directory, allowed)}
    _check_size(root, files.values())
    found = [block for path in sorted(root.glob("*.tf*")) if _is_code(path) for block in blocks.read(path)]
    if not found:
        raise InvalidInput("module", f"{root} holds no Terraform module.", "Name a directory with .tf files.")
    settings = [inner for block in found if block.type == "terraform" for inner in block.blocks]
    if any(inner.type == "cloud" for inner in settings):
        raise InvalidInput(
            "module", f"{root} has a 'cloud' block, which runs Terraform elsewhere.", "Remove the block."
        )
    return Module(
        files=files,
        workdir=str(root.relative_to(top)),
        variables=frozenset(block.labels[0] for block in found if block.type == "variable" and block.labels),
        needs_init=any(_needs_init(block) for block in found),
        has_backend=any(inner.type == "backend" for inner in settings),
        providers={
            (block.labels[0], _constant(block.attributes.get("alias", ""))): dict(_flat(block))
            for block in found
            if block.type == "provider" and block.labels
        },
    )


def copy(module: Module, target: Path) -> None:
    """Copies the files below ``target``: mode 0600, or 0700 where the original may be executed."""
    for name, source in module.files.items():
        executable = bool(source.stat().st_mode & stat.S_IXUSR)
        write_private(target / name, source.read_bytes(), mode=0o700 if executable else 0o600, durable=False)


def digest(directory: Path, names: Iterable[str]) -> str:
    """Returns a hash over these files of a directory; empty where one is missing or unreadable."""
    total = hashlib.sha256()
    try:
        for name in sorted(names):
            total.update(f"{name}\0{hashlib.sha256((directory / name).read_bytes()).hexdigest()}\n".encode())
    except OSError:
        return ""
    return total.hexdigest()


def _files(directory: Path, allowed: tuple[Path, ...]) -> Iterator[Path]:
    if not directory.is_dir():
        raise InvalidInput("module", f"{directory} is not a directory.", "Name a directory with .tf files.")
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in subfolders:
            if (path := Path(folder, name)).is_symlink():
                raise InvalidInput("module", f"{path} is a linked directory.", "Copy it into the module.")
        for name in sorted(names):
            if _SKIPPED.search(name):
                continue
            path = Path(folder, name)
            _check_inside(path.resolve(), allowed)
            if not path.is_file():
                raise InvalidInput("module", f"{path} is not a regular file.", "Remove it from the module.")
            yield path


def _check_inside(path: Path, allowed: tuple[Path, ...]) -> None:
    if not any(path.is_relative_to(directory) for directory in allowed):
        raise InvalidInput("module", f"{path} lies outside of the module {allowed[0]}.", "Copy it into the module.")


def _check_size(root: Path, paths: Iterable[Path]) -> None:
    sizes = [path.stat().st_size for path in paths]
    if len(sizes) > MAXIMUM_FILES or sum(sizes) > MAXIMUM_BYTES:
        raise InvalidInput(
            "module",
            f"{root} holds {len(sizes)} files and {sum(sizes)} bytes; at most {MAXIMUM_FILES} and {MAXIMUM_BYTES}.",
            "Name the directory of the root module itself.",
        )


def _is_code(path: Path) -> bool:
    return path.name.endswith((".tf", ".tf.json")) and not path.name.startswith(".")


def _called(path: Path) -> Iterator[Path]:
    for block in blocks.read(path):
        source = _constant(block.attributes.get("source", "")) if block.type == "module" else ""
        if source.startswith(("./", "../")):
            yield (path.parent / source).resolve()


def _constant(raw: str) -> str:
    """The string that an expression is, or nothing where it is more than a quoted string."""
    try:
        value = json.loads(raw)
    except ValueError:
        return ""
    return value if isinstance(value, str) else ""


def _needs_init(block: Block) -> bool:
    match block.type:
        case "resource" | "data":
            kind = block.labels[0] if block.labels else ""
            provider = block.attributes.get("provider", "terraform")
            return kind.partition("_")[0] != "terraform" or provider.partition(".")[0] != "terraform"
        case "provider":
            return block.labels != ("terraform",)
        case "terraform":
            return any(inner.type != "required_providers" or not _only_builtin(inner) for inner in block.blocks)
    return block.type not in _NEVER_NEEDS_INIT


def _only_builtin(block: Block) -> bool:
    native = all(name == "terraform" and _BUILTIN in text for name, text in block.attributes.items())
    return native and bool(block.attributes)


def _flat(block: Block, prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, text in block.attributes.items():
        yield f"{prefix}{name}", text
    names = [inner.type for inner in block.blocks]
    for inner in block.blocks:
        if names.count(inner.type) == 1:  # which of several is meant cannot be said by name
            yield from _flat(inner, f"{prefix}{inner.type}.")
