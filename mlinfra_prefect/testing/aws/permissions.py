"""IAM of an emulated account: off, or only what the policies of a request's credentials allow.

moto's own enforcement compares a resource with ``*`` as a text and knows neither variables nor tags, so a role that is
pinned to anything may do nothing there. This one follows what `policies` follows, for S3 and for services asked by
name; secrets and parameters by their ARN. Other REST services pass. Signatures are not checked, and resource policies
and boundaries are not looked at.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from mlinfra_prefect.testing.aws.account import PARTITION, Account
from mlinfra_prefect.testing.aws.actions import asked_of
from mlinfra_prefect.testing.aws.policies import allowed
from mlinfra_prefect.testing.aws.wire import Refused, Request

ADMINISTRATOR = "emulator-administrator"
_KEY = re.compile(r"(Credential=|AWSAccessKeyId=)(?P<key>\w+)")
_UNKNOWN = {"ec2": "AuthFailure", "s3": "InvalidAccessKeyId"}
_ALWAYS = frozenset({"sts:GetCallerIdentity"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks."""

    arn: str
    user_id: str
    documents: tuple[dict[str, Any], ...]


class Permissions:
    """Who may do what in one account.

    Args:
        account: whose.
        enforced: False: everyone may do everything.
    """

    def __init__(self, account: Account, *, enforced: bool) -> None:
        self._account, self._enforced = account, enforced
        self.credentials: dict[str, str] = {}
        """Variables with an administrator's keys; empty when nothing is enforced."""

    def begin(self) -> None:
        """Make the administrator, where policies are enforced."""
        if not self._enforced:
            return
        iam = self._iam()
        iam.create_user("us-east-1", ADMINISTRATOR)
        everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        iam.put_user_policy(ADMINISTRATOR, "everything", json.dumps(everything))
        key = iam.create_access_key(ADMINISTRATOR)
        self.credentials = {"AWS_ACCESS_KEY_ID": key.access_key_id, "AWS_SECRET_ACCESS_KEY": key.secret_access_key}

    def check(self, environ: dict[str, Any], request: Request) -> None:
        """Refuse a request that its sender may not make.

        Raises:
            Refused: as the service refuses it.
        """
        if not self._enforced:
            return
        who = self._principal(environ)
        service = request.operation.service
        if who is None:
            raise Refused(
                _UNKNOWN.get(service, "InvalidClientTokenId"),
                "The security token included in the request is invalid.",
                403,
            )
        body = b""
        if request.operation.name == "DeleteObjects":
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = io.BytesIO(body)
        path, query = str(environ.get("PATH_INFO", "")), str(environ.get("QUERY_STRING", ""))
        for each in asked_of(request, path, query, body):
            context = {"aws:userid": (who.user_id,), "aws:principalarn": (who.arn,), "aws:securetransport": ("true",),
                       **each.context, **self._tags_of(each.named, request.region)}  # fmt: skip
            resource = each.resource or self._secret(request)
            if each.action not in _ALWAYS and not allowed(who.documents, each.action, resource, context):
                raise _denied(service, who.arn, each.action, request.operation.style)

    def _principal(self, environ: dict[str, Any]) -> Principal | None:
        from moto.sts.models import sts_backends

        found = _KEY.search(str(environ.get("HTTP_AUTHORIZATION") or environ.get("QUERY_STRING", "")))
        if found is None:
            return None
        iam = self._iam()
        session = sts_backends[self._account.id][PARTITION].get_assumed_role_from_access_key(found["key"])
        if session is not None:
            role = iam.get_role_by_arn(session.role_arn)
            return Principal(session.arn, session.user_id, _documents(role))
        user = iam.get_user_from_access_key_id(found["key"])
        return None if user is None else Principal(user.arn, user.id, _documents(user))

    def _tags_of(self, named: str, region: str) -> dict[str, tuple[str, ...]]:
        tags = self._account.ec2(region).tags.get(named, {}) if named else {}
        return {
            f"{service}:resourcetag/{key}".lower(): (value,)
            for key, value in tags.items()
            for service in ("aws", "ec2")
        }

    def _secret(self, request: Request) -> str | None:
        """Return the ARN of the secret or parameter that is read by its name; None: another request."""
        service, name, region = request.operation.service, request.operation.name, request.region
        if (service, name) == ("ssm", "GetParameter"):
            path = str(request.asked.get("Name", ""))
            owner = "" if path.startswith("/aws/") else self._account.id  # AWS's own belong to no account
            return f"arn:{PARTITION}:ssm:{region}:{owner}:parameter/{path.removeprefix('/')}"
        if (service, name) == ("secretsmanager", "GetSecretValue"):
            from moto.secretsmanager.models import secretsmanager_backends

            asked = str(request.asked.get("SecretId", ""))
            found = secretsmanager_backends[self._account.id][region].secrets.get(asked)
            absent = f"arn:{PARTITION}:secretsmanager:{region}:{self._account.id}:secret:{asked}-absent"
            return str(found.arn) if found is not None else absent
        return None

    def _iam(self) -> Any:
        from moto.iam.models import iam_backends

        return iam_backends[self._account.id][PARTITION]


def _documents(holder: Any) -> tuple[dict[str, Any], ...]:
    """Return the policies of one of moto's roles or users, inline and attached."""
    attached = (version.document for policy in holder.managed_policies.values()
                for version in policy.versions if version.is_default)  # fmt: skip
    texts = (*holder.policies.values(), *attached)
    return tuple(json.loads(unquote(each) if each.startswith("%") else each) for each in texts)


def _denied(service: str, arn: str, action: str, style: str) -> Refused:
    message = f"User: {arn} is not authorized to perform: {action} because no identity-based policy allows the action"
    if service == "ec2":
        return Refused("UnauthorizedOperation", f"You are not authorized to perform this operation. {message}", 403)
    if service == "s3":
        return Refused("AccessDenied", message, 403)
    return Refused("AccessDeniedException", message) if style == "json" else Refused("AccessDenied", message, 403)
