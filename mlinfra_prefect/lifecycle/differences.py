"""What a declaration and what stands differ in, and what would be done about it. Pure: nothing is read or changed here.

So `plan --check` and `apply` cannot disagree, and everything that can be refused is refused before anything is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mlinfra_prefect.errors import EndpointExists, EndpointNotReady, InvalidInput, RolloutHeld
from mlinfra_prefect.model.artifact import ModelArtifact
from mlinfra_prefect.model.declaration import NEW_SERVERS, RECORDED, SIZE, EndpointDeclaration, ServingDeclaration
from mlinfra_prefect.model.endpoint import GONE, IN_ROLLOUT, EndpointRecord, RolloutRecord, Version
from mlinfra_prefect.model.lease import State
from mlinfra_prefect.model.request import ServingRequest

Key = tuple[str, str]
"""Environment and name."""


class Action(StrEnum):
    """What is done about a difference."""

    SET = "set"
    """Written down; no server and no request notices."""
    SHARE = "share"
    PROMOTE = "promote"
    ROLLOUT = "rollout"
    """New servers, probed before the requests go to them."""
    DEPLOY = "deploy"
    RELEASE = "release"


@dataclass(frozen=True, slots=True)
class Change:
    """One field of one endpoint. `before` and `after` are JSON values."""

    endpoint: str
    environment: str
    field: str
    before: Any
    after: Any
    action: Action


@dataclass(frozen=True, slots=True)
class Standing:
    """An endpoint as the ledger has it, with the rollouts of its versions."""

    endpoint: EndpointRecord
    rollouts: Mapping[int, RolloutRecord]

    def serving(self, version: Version) -> ServingRequest:
        """How a version's servers were asked for."""
        rollout = self.rollouts.get(version.version)
        return self.endpoint.serving if rollout is None else rollout.serving

    def up(self, version: Version) -> bool:
        """Whether a version's servers are there to be sent requests."""
        rollout = self.rollouts.get(version.version)
        return rollout is not None and rollout.state is State.READY


@dataclass(frozen=True, slots=True)
class Difference:
    """One endpoint that is not as declared.

    Attributes:
        standing: None: it is to be deployed.
        declared: None: it is declared nowhere, and is to be released.
        changes: at least one.
        serving: how it shall be served; None where it is to be released.
        artifact: what is deployed or rolled out; None: nothing is.
        promote: the version that gets all requests; None: none.
    """

    standing: Standing | None
    declared: EndpointDeclaration | None
    changes: tuple[Change, ...]
    serving: ServingRequest | None = None
    artifact: ModelArtifact | None = None
    promote: int | None = None

    def has(self, action: Action) -> bool:
        """Whether one of its changes is of a kind."""
        return any(change.action is action for change in self.changes)


def compare(
    declaration: ServingDeclaration,
    standing: Mapping[Key, Standing],
    models: Mapping[str, ModelArtifact],
    *,
    where: str,
    prune: bool = False,
) -> tuple[Difference, ...]:
    """Return every endpoint that is not as declared, in the order of the declaration, then what is to be pruned.

    Args:
        declaration: what shall be.
        standing: every endpoint that is not released.
        models: the artifacts that the declaration names.
        where: the file, for errors.
        prune: whether undeclared endpoints shall go.

    Raises:
        InvalidInput: an endpoint, a version or a combination is not there to be had.
        RolloutHeld, EndpointExists, EndpointNotReady: an endpoint cannot be changed now.
    """
    found = [_of(each, standing.get(each.key), models, f"{where}: endpoints.{each.name}")
             for each in declaration.endpoints]  # fmt: skip
    if prune:
        found += [_pruned(each) for each in undeclared(declaration, standing)]
    return tuple(each for each in found if each.changes)


def undeclared(declaration: ServingDeclaration, standing: Mapping[Key, Standing]) -> tuple[Standing, ...]:
    """Return the endpoints that are not declared, of the environments that the declaration speaks of."""
    keys = {each.key for each in declaration.endpoints}
    environments = {environment for environment, _ in keys}
    return tuple(
        each for key, each in standing.items()
        if key not in keys and key[0] in environments and each.endpoint.live
    )  # fmt: skip


def _pruned(standing: Standing) -> Difference:
    endpoint = standing.endpoint
    _refuse_held(endpoint, endpoint.name)
    change = Change(endpoint.name, endpoint.environment, "endpoint", endpoint.id, None, Action.RELEASE)
    return Difference(standing, None, (change,))


def _of(
    declared: EndpointDeclaration, standing: Standing | None, models: Mapping[str, ModelArtifact], field: str
) -> Difference:
    asked = declared.model_dump(include={*NEW_SERVERS, *RECORDED, "expires_minutes"}, exclude_none=True)
    if standing is None:
        if declared.model is None:
            raise InvalidInput(
                field,
                f"there is no such endpoint in environment {declared.environment!r}, and no model appears by itself",
                "Deploy it from a flow, or name an artifact of this home: 'model: ID'.",
            )
        change = Change(declared.name, declared.environment, "model", None, declared.model, Action.DEPLOY)
        serving = ServingRequest(name=declared.name, environment=declared.environment).merged(asked)
        return Difference(None, declared, (change,), serving, models[declared.model])
    endpoint = standing.endpoint
    if not endpoint.live:
        raise EndpointExists(f"{field}: it is being given back ({endpoint.id}).", "Try again when it is gone.")
    current = endpoint.current
    if current is None:
        raise RolloutHeld(f"{field}: its first version is being deployed.", "Try again when it serves.")
    traffic, artifact, promote = _traffic(declared, standing, current, models, field)
    changes = (*_recorded(declared, standing, current), *traffic)
    if changes:
        _refuse_held(endpoint, field)
        if endpoint.state is not State.READY:
            raise EndpointNotReady(f"{field}: it is being repaired.", "Try again when it is up.")
    serving = standing.serving(current).merged({**asked, "port": None})
    return Difference(standing, declared, changes, serving, artifact, promote)


def _refuse_held(endpoint: EndpointRecord, field: str) -> None:
    there = endpoint.candidate
    if there is not None:
        raise RolloutHeld(
            f"{field}: version {there.version} is being rolled out ({there.rollout}).",
            f"Wait for it, or take it back: mlinfra-prefect rollback {endpoint.name}",
        )


def _recorded(declared: EndpointDeclaration, standing: Standing, current: Version) -> Iterator[Change]:
    """What is only written down."""
    endpoint, serving = standing.endpoint, standing.serving(current)
    if declared.retire_seconds not in {None, endpoint.serving.retire_seconds}:
        yield _change(endpoint, "retire_seconds", endpoint.serving.retire_seconds, declared.retire_seconds, Action.SET)
    if declared.ready_seconds not in {None, serving.ready_seconds}:
        yield _change(endpoint, "ready_seconds", serving.ready_seconds, declared.ready_seconds, Action.SET)
    minutes = None if endpoint.expires_at is None else serving.expires_minutes
    if declared.expires_minutes not in {None, minutes}:
        yield _change(endpoint, "expires_minutes", minutes, declared.expires_minutes, Action.SET)
    if declared.expires is not None and endpoint.expires_at is not None:
        moment = f"{endpoint.expires_at:%Y-%m-%dT%H:%M:%SZ}"
        yield _change(endpoint, "expires", moment, declared.expires, Action.SET)


def _traffic(
    declared: EndpointDeclaration, standing: Standing, current: Version, models: Mapping[str, ModelArtifact], field: str
) -> tuple[tuple[Change, ...], ModelArtifact | None, int | None]:
    """What concerns servers and requests: the changes, what is rolled out, and which version is promoted."""
    endpoint = standing.endpoint
    shares = {each.version: each.share for each in endpoint.versions if each.share and each.state not in IN_ROLLOUT}
    if declared.shares is not None:
        _check_shares(declared, standing, shares, field)
        change = _change(endpoint, "shares", _told(shares), _told(declared.shares), Action.SHARE)
        return () if shares == declared.shares else (change,), None, None
    model = declared.model or current.artifact.id
    moves = declared.model is not None and (current.artifact.id != model or shares != {current.version: 100})
    sharing = [each for each in endpoint.versions if each.version in shares]
    wrong = [each for each in (sharing if declared.model is None else [current]) if _wrong(declared, standing, each)]
    if not moves and not wrong:
        return (), None, None
    if declared.model is None and len(sharing) > 1:
        name = _wrong(declared, standing, wrong[0])[0]
        listed = " and ".join(str(each.version) for each in sharing)
        raise InvalidInput(
            f"{field}.{name}", f"versions {listed} share the requests, and new servers would get all of them",
            "Promote one of them first.",
        )  # fmt: skip
    fit = _fit(declared, standing, current, model)
    action = Action.ROLLOUT if fit is None else Action.PROMOTE
    changes = []
    if current.artifact.id != model:
        changes.append(_change(endpoint, "model", current.artifact.id, model, action))
    elif moves:
        target = current.version if fit is None else fit.version
        changes.append(_change(endpoint, "shares", _told(shares), _told({target: 100}), action))
    for name in _wrong(declared, standing, current):
        before, after = getattr(standing.serving(current), name), getattr(declared, name)
        changes.append(_change(endpoint, name, _plain(before), _plain(after), action))
    if fit is not None:
        return tuple(changes), None, fit.version
    return tuple(changes), current.artifact if model == current.artifact.id else models[model], None


def _check_shares(declared: EndpointDeclaration, standing: Standing, shares: Mapping[int, int], field: str) -> None:
    """Refuse shares of versions that are not there to serve as declared."""
    endpoint, field = standing.endpoint, f"{field}.shares"
    for number in declared.shares or ():
        version = endpoint.version(number)
        if version is None or version.state in GONE:
            there = ", ".join(str(each.version) for each in endpoint.versions if each.state not in GONE) or "none"
            told = f"there is no version {number}" if version is None else f"version {number} is {version.state}"
            raise InvalidInput(field, told, f"There is: {there}.")
        if number not in shares and not standing.up(version) and version.state not in IN_ROLLOUT:
            raise EndpointNotReady(
                f"{field}: version {number} is not up.", "Bring it back: mlinfra-prefect endpoints --repair"
            )
        wrong = _wrong(declared, standing, version)
        if wrong:
            raise InvalidInput(
                field,
                f"version {number} has another {wrong[0]} than is declared, and to change it makes a new version",
                "Leave shares out of this change; name the new version afterwards.",
            )  # fmt: skip


def _wrong(declared: EndpointDeclaration, standing: Standing, version: Version) -> list[str]:
    """The declared fields for which a version would need other servers."""
    serving = standing.serving(version)
    return [
        name for name in NEW_SERVERS
        if getattr(declared, name) is not None and _plain(getattr(declared, name)) != _plain(getattr(serving, name))
    ]  # fmt: skip


def _fit(declared: EndpointDeclaration, standing: Standing, current: Version, model: str) -> Version | None:
    """The newest version that is up and is what is declared: to go (back) to it needs no new servers."""
    now = standing.serving(current)
    # Of the same model everything that is not declared is left alone; another model has its own types and predictor.
    names = SIZE if model != current.artifact.id else NEW_SERVERS
    kept = [name for name in names if getattr(declared, name) is None]
    found = [
        each for each in standing.endpoint.versions
        if each.artifact.id == model and each.state not in GONE | IN_ROLLOUT and standing.up(each)
        and not _wrong(declared, standing, each)
        and all(_plain(getattr(standing.serving(each), name)) == _plain(getattr(now, name)) for name in kept)
    ]  # fmt: skip
    return max(found, key=lambda each: each.version, default=None)


def _change(endpoint: EndpointRecord, field: str, before: Any, after: Any, action: Action) -> Change:
    return Change(endpoint.name, endpoint.environment, field, before, after, action)


def _told(shares: Mapping[int, int]) -> dict[str, int]:
    return {str(version): share for version, share in sorted(shares.items())}


def _plain(value: Any) -> Any:
    """A field's value as JSON has it; types are trusted in no order."""
    return sorted(value) if isinstance(value, tuple) else value
