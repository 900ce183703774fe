"""Adopt the work of a lost host: what its jobs made is still in their node's mailbox, and goes into this home.

A keeper on another host has the ledger and the mailbox, and nothing of the home that is gone. So whoever hands a job
over writes beside it, where the node can only read, from what code and request its artifact comes (rule R15: what is
trusted is written by us). With that the next keeper drains and collects as the first one would have (rule R16).
"""

from __future__ import annotations

from typing import Any

from mlinfra_prefect.agent.folders import private_folder
from mlinfra_prefect.artifacts import Lineage
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.lineages import lineage_file, note_lineage, parse, payload
from mlinfra_prefect.lifecycle.platform import Node
from mlinfra_prefect.lifecycle.resuming import ResumePlace, note_maker
from mlinfra_prefect.model.lease import LeaseRecord


def origin_of(lineage: Lineage, place: ResumePlace) -> dict[str, Any]:
    """Return what a keeper in another home has to know of a job. Pure."""
    return {"lineage": payload(lineage, place.makers), "key": place.key}


def adopt_jobs(context: Context, record: LeaseRecord) -> None:
    """Have what a lease's jobs leave brought into this home, where another one handed them over. Idempotent.

    Free where this home handed them over itself. What is not told stays unknown: see `is_ours`.

    Raises:
        TemporaryError: the mailbox cannot be read now.
        OSError: it cannot be written down.
    """
    attempt = record.attempt
    if attempt is None or attempt.mailbox is None:
        return
    strange = [each.job_id for each in record.jobs if not is_ours(context, record, each.job_id)]
    if not strange:
        return
    node = context.platform(record.platform).node(attempt)
    for job_id in strange:
        _adopt(context, record, node, job_id)


def is_ours(context: Context, record: LeaseRecord, job_id: str) -> bool:
    """Whether this home knows where a job's artifact comes from: it handed it over, or has adopted it."""
    return lineage_file(context, record.id, job_id).exists()


def _adopt(context: Context, record: LeaseRecord, node: Node, job_id: str) -> None:
    origin = node.origin(job_id)
    if origin is None:
        return
    try:
        lineage, makers = parse(dict(origin["lineage"]))
        key = str(origin["key"])
    except (KeyError, TypeError, ValueError):
        return  # an earlier version has handed it over
    place = note_maker(context, record.environment, key, lineage.code_hash)
    incoming = context.artifacts.incoming(record.id, job_id)
    private_folder(incoming.parent)
    node.expect(job_id, incoming, place.store)
    note_lineage(context, record, job_id, lineage, makers)  # last: it says that all of it is done
