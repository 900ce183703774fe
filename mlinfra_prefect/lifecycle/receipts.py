"""The last write of a release: the receipt, and `released`."""

from __future__ import annotations

from mlinfra_prefect.errors import NotYetDestroyed
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.archiving import archive
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.model.endpoint import GONE, EndpointRecord, RolloutRecord, VersionState
from mlinfra_prefect.model.lease import LIVE, LeaseRecord, State
from mlinfra_prefect.model.names import as_line, rollout_base
from mlinfra_prefect.model.receipt import Receipt, Search


def write_receipt(context: Context, record: KeptRecord, searches: list[Search]) -> KeptRecord:
    """Say `released`, with the proof.

    Raises:
        NotYetDestroyed: the last two looks were not clean; nothing was written.
        LeaseLost: a newer keeper took the record over.
    """
    why = _why(context, record)
    lost, left = states_lost(context, record), work_left(context, record)
    versions = _released_with(context, record) if isinstance(record, EndpointRecord) else []
    own = "router: " if isinstance(record, EndpointRecord) else ""  # servers and router are resources of one name

    def change(now: KeptRecord) -> KeptRecord:
        moment = context.ledger.now()
        up = trained = cost = 0.0
        for attempt in now.attempts:
            if attempt.applied_at is None:
                continue
            gone = attempt.stopped_at or attempt.gone_at or moment
            if not attempt.rents_nothing:
                up += max(0.0, (gone - (attempt.up_at or attempt.applied_at)).total_seconds())
            cost += attempt.cost_usd(moment)
        if isinstance(now, LeaseRecord):
            trained = sum(
                (job.finished_at - job.started_at).total_seconds()
                for job in now.jobs
                if job.started_at and job.finished_at
            )
        served = up if isinstance(now, EndpointRecord | RolloutRecord) else 0.0
        receipt = Receipt(
            kind=now.kind,
            id=now.id,
            ledger_id=now.ledger_id,
            reason=why,
            attempts=len(now.attempts),
            created=(
                *(as_line(f"version {n}: {r}") for n, receipt in versions for r in receipt.created),
                *(as_line(f"{own}{a.number}/{r}") for a in now.attempts for r in a.resources),
            ),
            destroyed=(
                *(as_line(f"version {n}: {r}") for n, receipt in versions for r in receipt.destroyed),
                *(as_line(f"{own}{a.number}/{r}") for a in now.attempts for r in a.destroyed),
            ),
            searches=(*(search for _, receipt in versions for search in receipt.searches), *lost, *left, *searches),
            requested_at=now.created_at,
            released_at=moment,
            up_seconds=max(0.0, up),
            trained_seconds=max(0.0, trained),
            idle_seconds=max(0.0, up - trained - served),
            cost_usd=max(0.0, round(cost, 6)),
        )
        if not receipt.clean:
            raise NotYetDestroyed(f"{now.id}: the last two looks were not clean.")
        changes: dict[str, object] = {
            "state": State.RELEASED, "released_at": moment, "receipt": receipt, "retry_at": None, "reason": why,
        }  # fmt: skip
        if isinstance(now, EndpointRecord):
            changes["versions"] = tuple(
                v.revised(state=v.state if v.state in GONE else VersionState.RETIRED, share=0) for v in now.versions
            )
        return now.revised(**changes)

    released = revise(
        context.ledger, record.id, change,
        actor=context.actor, reason=as_line(f"released: {why}"), generation=record.generation,
    )  # fmt: skip
    archive(context.home, released)
    return released


def states_lost(context: Context, record: KeptRecord) -> list[Search]:
    """Say of each attempt whose Terraform state cannot tell what existed why that is, and what decided instead.

    Read from what lies on the disk, so that a release that goes on after a crash comes to the same receipt.
    """
    found = []
    for attempt in record.attempts:
        if attempt.applied_at is None:
            continue
        place = context.directory(record, attempt.directory)
        there = place.is_dir()
        why = context.open_stack(place, record, attempt.number).why_suspect() if there else "its directory is gone"
        if why:
            found.append(
                Search(
                    what=f"what the state of attempt {attempt.number} names; what carries the mark decided instead",
                    where=as_line(str(place / "terraform.tfstate")),
                    at=context.ledger.now(),
                    found=(as_line(why),),
                )
            )
    return found


def work_left(context: Context, record: KeptRecord) -> list[Search]:
    """Say of each job whose work could not be kept where it lies."""
    jobs = record.jobs if isinstance(record, LeaseRecord) else ()
    return [
        Search(
            what=as_line(f"what job {job.job_id} made, and could not be kept: it stays until the bucket forgets it"),
            where=job.left_at,
            at=context.ledger.now(),
            found=(as_line(f"job {job.job_id} ({job.label})"),),
        )
        for job in jobs
        if job.left_at
    ]


def _released_with(context: Context, endpoint: EndpointRecord) -> list[tuple[int, Receipt]]:
    """The versions whose servers went with their endpoint, and the receipts of their rollouts."""
    began = endpoint.releasing_at or endpoint.created_at
    rollouts = [seen.record for seen in context.ledger.rounds(rollout_base(endpoint.id))]
    return [
        (each.version, each.receipt)
        for each in rollouts
        if isinstance(each, RolloutRecord) and each.receipt is not None and each.receipt.released_at >= began
    ]


def _why(context: Context, record: KeptRecord) -> str:
    """Why its release began; what the passes that failed said is not what a receipt is asked for."""
    for line in context.ledger.history(record.id):
        if line.state == State.RELEASING and line.before in LIVE:
            return as_line(line.reason)
    return record.reason
