"""Reconcile: bring what is served to what is declared. What that takes is decided by `lifecycle.differences`.

Nothing is done before everything was looked at. Endpoints are changed one after the other, each in steps that are
compare-and-swaps or rollouts: killed in between, what was done stands, and the next apply does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from mlinfra_prefect.errors import InvalidInput, NotFound
from mlinfra_prefect.keeper import client as keeper, rollouts
from mlinfra_prefect.keeper.starting import have_kept
from mlinfra_prefect.ledger import KeptRecord, revise
from mlinfra_prefect.lifecycle.context import Context
from mlinfra_prefect.lifecycle.differences import Action, Change, Difference, Key, Standing, compare, undeclared
from mlinfra_prefect.lifecycle.serving import ask_to_serve
from mlinfra_prefect.lifecycle.versions import rollout_of
from mlinfra_prefect.local.serving import check_servable, check_trusted
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.declaration import RECORDED, ServingDeclaration
from mlinfra_prefect.model.endpoint import EndpointRecord, RolloutRecord
from mlinfra_prefect.model.lease import OPEN, Client
from mlinfra_prefect.model.process import Owner

RELEASE_WAIT_SECONDS = 900.0
REASON = "as declared"


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What is to be done, and which endpoints are declared nowhere."""

    differences: tuple[Difference, ...]
    undeclared: tuple[EndpointRecord, ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """Every change, in the order in which they are made."""
        return tuple(change for each in self.differences for change in each.changes)


def look(context: Context, declaration: ServingDeclaration, *, where: str, prune: bool = False) -> Reconciliation:
    """Return what is not as declared. Changes nothing.

    Args:
        context: where.
        declaration: what shall be.
        where: the file, for errors.
        prune: whether undeclared endpoints of the same environments shall be released.

    Raises:
        InvalidInput: an environment, an endpoint, a model, a version or a combination is not there to be had.
        RolloutHeld, EndpointExists, EndpointNotReady: an endpoint cannot be changed now.
    """
    models: dict[str, ModelArtifact] = {}
    for each in declaration.endpoints:
        field = f"{where}: endpoints.{each.name}"
        try:
            context.config.environment(each.environment)
            if each.model is not None:
                models[each.model] = context.artifacts.read(each.model)
        except InvalidInput as error:
            raise InvalidInput(f"{field}.{error.field}", error.args[1], error.remedy) from None
        except NotFound as error:
            told = "`mlinfra-prefect show LEASE` names the artifacts that a lease made."
            raise InvalidInput(f"{field}.model", error.message, told) from None
    standing = _standing(context)
    differences = compare(declaration, standing, models, where=where, prune=prune)
    return Reconciliation(differences, tuple(each.endpoint for each in undeclared(declaration, standing)))


def _standing(context: Context) -> dict[Key, Standing]:
    found: dict[Key, Standing] = {}
    for seen in context.ledger.records(states=OPEN):
        endpoint = seen.record
        if isinstance(endpoint, EndpointRecord):
            held = ((each.version, rollout_of(context, each)) for each in endpoint.versions)
            by_version = {number: rollout for number, rollout in held if rollout is not None}
            found[endpoint.environment, endpoint.name] = Standing(endpoint, by_version)
    return found


def check(context: Context, differences: Sequence[Difference]) -> None:
    """Refuse, before anything is done, what a rollout of these would be refused for. Reads every file of the models.

    Raises:
        InvalidInput: a model cannot be served as declared.
        ArtifactCorrupted: a model is not what was stored.
    """
    for each in differences:
        if each.artifact is not None and each.serving is not None:
            check_servable(each.artifact.format, each.serving.predictor)
            check_trusted(context.artifacts.verified(each.artifact.id), each.serving.trusted_types)


def reconcile(
    context: Context,
    differences: Sequence[Difference],
    *,
    owner: Owner,
    client: Client,
    done: Callable[[Sequence[Change]], None] = lambda _: None,
) -> None:
    """Do what `look` found, one endpoint after the other. Blocks until requests go where they shall.

    Args:
        context: where.
        differences: as `look` found them.
        owner: who asks, for listings.
        client: who waits: gone before a promotion, that rollout is rolled back.
        done: told the changes that were just made.

    Raises:
        InvalidInput, ArtifactCorrupted: as said by `check`; nothing was done.
        MlinfraError: what a step failed of; what was done before it stands.
    """
    check(context, differences)
    for each in differences:
        for actions, step in (
            ({Action.SET}, _set),
            ({Action.SHARE, Action.PROMOTE}, _move),
            ({Action.ROLLOUT, Action.DEPLOY}, partial(_roll_out, owner=owner, client=client)),
            ({Action.RELEASE}, _release),
        ):
            made = [change for change in each.changes if change.action in actions]
            if made:
                step(context, each)
                done(made)


def _set(context: Context, difference: Difference) -> None:
    """Write down what no server and no request notices."""
    endpoint, declared, serving = _fresh(context, difference), difference.declared, difference.serving
    assert declared is not None
    assert serving is not None
    fields = {change.field for change in difference.changes if change.action is Action.SET}
    values = {name: getattr(serving, name) for name in fields.intersection(RECORDED)}
    expires_at = endpoint.expires_at
    if "expires_minutes" in fields:
        values["expires_minutes"] = serving.expires_minutes
        expires_at = context.ledger.now() + timedelta(minutes=serving.expires_minutes or 0)
    if "expires" in fields:
        values["expires_minutes"] = expires_at = None
    _write(context, endpoint, values, expires_at)


def _write(context: Context, endpoint: EndpointRecord, values: Mapping[str, object], until: datetime | None) -> None:
    """Have an endpoint and its servers agree on how they are served and when they end. Idempotent.

    The rollouts first: the keeper follows them, so what is killed here leaves nothing that is undone later.
    """
    listed = ", ".join(f"{name} {value}" for name, value in values.items())
    told = f"{REASON}: {listed or 'it expires with its endpoint'}"
    held = (version.rollout for version in endpoint.versions)
    for record_id in (*filter(None, held), endpoint.id):
        found = context.ledger.read(record_id)
        if found is None or not found.record.live:
            continue
        after = revise(context.ledger, record_id, _served(values, until), actor=context.actor, reason=told)
        assert isinstance(after, EndpointRecord | RolloutRecord)  # an endpoint names nothing else
        context.platform(after.platform).prolong(after, until)
        have_kept(context, after)


def _served(values: Mapping[str, object], until: datetime | None) -> Callable[[KeptRecord], KeptRecord | None]:
    def change(now: KeptRecord) -> KeptRecord | None:
        if not now.live or not isinstance(now, EndpointRecord | RolloutRecord):
            return None
        return now.revised(serving=now.serving.merged(values), expires_at=until)

    return change


def _move(context: Context, difference: Difference) -> None:
    """Send requests to versions that are up."""
    endpoint, declared = _fresh(context, difference), difference.declared
    assert declared is not None
    # A version that serves again would bring the expiry that it was once deployed with.
    _write(context, endpoint, {}, endpoint.expires_at)
    if difference.promote is not None:
        rollouts.promote(context, endpoint, difference.promote, reason=REASON)
    else:
        assert declared.shares is not None
        rollouts.share(context, endpoint, dict(declared.shares), reason=REASON)


def _roll_out(context: Context, difference: Difference, *, owner: Owner, client: Client) -> None:
    """Start new servers, and wait until all requests go to them. What serves is not touched before."""
    artifact, serving = difference.artifact, difference.serving
    assert artifact is not None
    assert serving is not None

    def as_before(rollout_id: str) -> None:
        """Have the new servers end when the endpoint does: a rollout by itself would put that off."""
        if difference.standing is not None:
            until = context.endpoint(difference.standing.endpoint.id).expires_at
            told = f"{REASON}: it expires with its endpoint"
            revise(context.ledger, rollout_id, _served({}, until), actor=context.actor, reason=told)

    ask = partial(ask_to_serve, context, artifact, serving, owner=owner, client=client)
    asked = rollouts.begin(context, ask, asked=as_before)
    try:
        rollouts.wait_rolled(context, asked.rollout)
    except BaseException:
        rollouts.give_up(context, asked, "apply stopped waiting for it")
        raise


def _release(context: Context, difference: Difference) -> None:
    endpoint = _fresh(context, difference)
    keeper.release(context, endpoint.id, reason="it is not declared any more", drain=False)
    keeper.wait_released(context, endpoint.id, timeout=RELEASE_WAIT_SECONDS)


def _fresh(context: Context, difference: Difference) -> EndpointRecord:
    """The endpoint as it stands now: the step before may have changed it."""
    assert difference.standing is not None
    return context.endpoint(difference.standing.endpoint.id)
