"""The user's code on its way to a node: found, packed, checked, before anything is provisioned."""

from __future__ import annotations

from mlinfra_prefect.code.address import CallableReference
from mlinfra_prefect.code.archive import write_archive
from mlinfra_prefect.code.check import check_import
from mlinfra_prefect.code.collecting import collect
from mlinfra_prefect.code.package import CodeFile, CodePackage
from mlinfra_prefect.code.prepare import Prepared, prepare
from mlinfra_prefect.code.project import find_root
from mlinfra_prefect.code.reference import reference, resolve
from mlinfra_prefect.code.signature import check_signature

__all__ = [
    "CallableReference",
    "CodeFile",
    "CodePackage",
    "Prepared",
    "check_import",
    "check_signature",
    "collect",
    "find_root",
    "prepare",
    "reference",
    "resolve",
    "write_archive",
]
