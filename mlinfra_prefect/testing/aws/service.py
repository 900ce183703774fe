"""Stands before moto, behind the fault proxy: answers what moto lacks, mends what it leaves out, tells the machines.

It answers instant fleets, quotas, prices and consoles itself, and gives each region the images that AWS has everywhere.
A launch by RunInstances is moto's, with capacity and quota asked before and what a launch template says added after.
Everything else passes.
"""

from __future__ import annotations

import base64
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import Any

from mlinfra_prefect.testing.aws import prices, quotas
from mlinfra_prefect.testing.aws.account import Account
from mlinfra_prefect.testing.aws.capacity import Pool, not_offered, over_quota
from mlinfra_prefect.testing.aws.faults import Faults
from mlinfra_prefect.testing.aws.fleets import InstantFleets
from mlinfra_prefect.testing.aws.images import add_images, add_parameters
from mlinfra_prefect.testing.aws.kinds import offered
from mlinfra_prefect.testing.aws.launching import (
    Launch,
    completed,
    no_profile,
    spot_requested,
    tag_specifications,
    zone_of,
)
from mlinfra_prefect.testing.aws.tagged import all_tagged
from mlinfra_prefect.testing.aws.wire import Answer, Refused, Request, ec2_answer, json_answer, read, refusal
from mlinfra_prefect.testing.faults import Application, StartResponse, read_operation

Handler = Callable[[Request], Answer | None]
"""Answers a request; None: moto is to carry it out."""
REMEMBERED = 512
"""How many answers are kept for requests that are sent again with their client token."""
_IDEMPOTENT = frozenset({"RunInstances", "CreateFleet"})
_HIDING = ("Describe", "GetResources")


class Service:
    """A WSGI application before moto, for one account.

    Args:
        moto: carries out what isn't answered here.
        account: to which every request goes, whatever its credentials.
        faults: of the emulator.
        region: of a request that names none.
        allowed: raises `Refused` for a request that its sender may not make.
    """

    def __init__(
        self, moto: Application, account: Account, faults: Faults, region: str,
        allowed: Callable[[dict[str, Any], Request], None] = lambda _environ, _request: None,
    ) -> None:  # fmt: skip
        self._moto, self._account, self._faults, self._region, self._allowed = moto, account, faults, region, allowed
        self.fleets = InstantFleets(account, faults)
        self.console: Callable[[str], str | None] = lambda _: None
        """What an instance wrote; set by the emulator."""
        self.changed: Callable[[], None] = lambda: None
        """Called after each request that may have changed an instance."""
        self.rebooted: Callable[[str], None] = lambda _: None
        self._tokens: OrderedDict[tuple[str, str, str], Answer] = OrderedDict()
        self._prepared: set[tuple[str, str]] = set()

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Carry out one request."""
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = self._account.id
        operation = read_operation(environ)
        request = read(environ, operation, self._region)
        self._prepare(operation.service, request.region)
        try:
            self._allowed(environ, request)
            answer = self._answered(request)
        except Refused as refused:
            answer = refusal(operation, refused)
        if answer is None and operation.service not in {"ec2", "tagging"}:
            return self._moto(environ, start_response)
        if answer is None:
            return self._passed(environ, start_response, request)
        if operation.service == "ec2" and not operation.name.startswith("Describe"):
            self.changed()
        start_response(answer.status, [("Content-Type", answer.kind), ("Content-Length", str(len(answer.body)))])
        return [answer.body]

    def _answered(self, request: Request) -> Answer | None:
        """Answer what is answered here; None: it is moto's."""
        key = (request.region, request.operation.name, str(request.asked.get("ClientToken", "")))
        if key[2] and key in self._tokens:
            return self._tokens[key]  # sent again: what it did then is what it does
        handler = self._handler(request)
        if handler is None:
            return None
        if request.asked.get("DryRun"):
            raise Refused("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)
        answer = handler(request)
        if answer is not None and key[2] and request.operation.name in _IDEMPOTENT:
            self._remember(key, answer)
        return answer

    def _handler(self, request: Request) -> Handler | None:
        service, name, asked = request.operation.service, request.operation.name, request.asked
        if service == "ec2":
            if name == "CreateFleet" and asked.get("Type") == "instant":
                return lambda each: ec2_answer(name, self.fleets.create(each))
            fleets: dict[str, Handler] = {
                "DescribeFleets": self._described_fleets,
                "DeleteFleets": self._deleted_fleets,
            }
            if name in fleets and self.fleets.has(request.region, asked.get("FleetIds", [])):
                return fleets[name]
            ours: dict[str, Handler] = {
                "RunInstances": self._may_run, "TerminateInstances": self._terminated,
                "GetConsoleOutput": self._console, "DescribeSpotPriceHistory": self._spot_history,
                "DeleteNetworkInterface": self._may_delete_interface,
            }  # fmt: skip
            return ours.get(name)
        if service == "servicequotas" and asked.get("ServiceCode") == "ec2":
            return self._quotas
        if service == "pricing" and name == "GetProducts":
            return lambda each: json_answer(prices.products(each))
        return None

    # --- moto carries it out -----------------------------------------------------------------------------------------

    def _passed(self, environ: dict[str, Any], start_response: StartResponse, request: Request) -> Iterable[bytes]:
        name = request.operation.name
        before = {each.id for each in self._account.raw_instances(request.region)} if name == "RunInstances" else set()
        told: list[tuple[str, list[tuple[str, str]]]] = []

        def start(status: str, headers: list[tuple[str, str]], _error: Any = None) -> None:
            told.append((status, headers))

        with self._hidden(request):
            answer = self._moto(environ, start)
            body = b"".join(answer)
            getattr(answer, "close", lambda: None)()
        status, headers = told[-1]
        if name == "RunInstances" and status.startswith("200"):
            for raw in [each for each in self._account.raw_instances(request.region) if each.id not in before]:
                self._complete(request, raw)
            token = str(request.asked.get("ClientToken", ""))
            if token:
                self._remember(
                    (request.region, name, token), Answer(status, dict(headers).get("Content-Type", "text/xml"), body)
                )
        if name == "RebootInstances" and status.startswith("200"):
            for each in request.asked.get("InstanceIds", []):
                self.rebooted(each)
        if request.operation.service == "ec2" and not name.startswith("Describe"):
            self._account.settle_spot(self._account.ec2(request.region))
            self.changed()
        start_response(status, headers)
        return [body]

    def _hidden(self, request: Request) -> AbstractContextManager[None]:
        if self._faults.late_seconds <= 0 or not request.operation.name.startswith(_HIDING):
            return nullcontext()
        since = time.time() - self._faults.late_seconds
        return self._account.hidden(request.region, since)

    def _complete(self, request: Request, raw: Any) -> None:
        """Give an instance of RunInstances what moto leaves out, from the request and from its launch template."""
        asked = {**self._template(request), **request.asked}
        tags = tag_specifications(self._template(request).get("TagSpecifications") or [])
        for kind, more in tag_specifications(request.asked.get("TagSpecifications") or []).items():
            tags[kind] = tags.get(kind, {}) | more
        completed(self._account, request.region, raw, tags, asked.get("IamInstanceProfile") or {})
        raw.instance_initiated_shutdown_behavior = asked.get("InstanceInitiatedShutdownBehavior") or "stop"
        pool = Pool(request.region, raw.availability_zone or "", raw.instance_type, _market(asked))
        self._faults.capacity_taken(pool)
        if pool.market == "spot":
            raw.lifecycle = "spot"
            spot_requested(self._account, Launch(pool, asked, tags), raw)

    # --- answered here -----------------------------------------------------------------------------------------------

    def _may_run(self, request: Request) -> None:
        """Refuse a launch that finds no capacity or is above a quota; otherwise moto makes it."""
        asked = {**self._template(request), **request.asked}
        name, region = asked.get("InstanceType", ""), request.region
        profile = asked.get("IamInstanceProfile")
        if profile and self._faults.profile_unseen():
            raise no_profile(profile)
        if not name:
            return
        nics = asked.get("NetworkInterfaces") or [{}]
        subnet = asked.get("SubnetId") or nics[0].get("SubnetId") or ""
        zone = (
            zone_of(self._account, region, subnet) if subnet else (asked.get("Placement") or {}).get("AvailabilityZone")
        )
        # Without a zone EC2 chooses one that can; moto takes the first one, which is told to the pool afterwards.
        zones = (zone,) if zone else offered(region).get(name) or (f"{region}a",)
        pools = [Pool(region, each, name, _market(asked)) for each in zones]
        quota = quotas.quota_of(name, pools[0].market)
        more = (int(request.asked.get("MinCount", 1)) - 1) * quotas.vcpus(name)
        why = [
            not_offered(pool)
            or over_quota(self._account, pool, self._faults.quota_value(quota, region), more)
            or self._faults.capacity_refusal(pool, fleet=False)
            for pool in pools
        ]
        refused = [each for each in why if each is not None]
        if len(refused) == len(pools):
            raise refused[0]

    def _terminated(self, request: Request) -> Answer | None:
        ids = request.asked.get("InstanceIds", [])
        known = {each.id: each for each in self._account.raw_instances(request.region)}
        if not ids or any(each not in known for each in ids) or not self._faults.lies(ids):
            return None
        return ec2_answer("TerminateInstances", {"TerminatingInstances": [
            {"InstanceId": each, "CurrentState": {"Code": 32, "Name": "shutting-down"},
             "PreviousState": {"Code": known[each].state_code, "Name": known[each].state}}
            for each in ids
        ]})  # fmt: skip

    def _may_delete_interface(self, request: Request) -> None:
        """Refuse what is in use, as EC2 does; moto would take it from under its instance, which then cannot end."""
        name = str(request.asked.get("NetworkInterfaceId", ""))
        for each in self._account.raw_instances(request.region):
            if each.state != "terminated" and any(nic.id == name for nic in each.nics.values()):
                raise Refused("InvalidParameterValue", f"Network interface '{name}' is currently in use.", 400)

    def _described_fleets(self, request: Request) -> Answer:
        return ec2_answer("DescribeFleets", self.fleets.describe(request.region, request.asked["FleetIds"]))

    def _deleted_fleets(self, request: Request) -> Answer:
        terminate = bool(request.asked.get("TerminateInstances"))
        return ec2_answer(
            "DeleteFleets", self.fleets.delete(request.region, request.asked["FleetIds"], terminate=terminate)
        )

    def _spot_history(self, request: Request) -> Answer:
        return ec2_answer("DescribeSpotPriceHistory", prices.spot_history(request))

    def _console(self, request: Request) -> Answer | None:
        written = self.console(request.asked["InstanceId"])
        if written is None:
            return None
        output = base64.b64encode(written[-65536:].encode()).decode()
        said = {"InstanceId": request.asked["InstanceId"], "Timestamp": datetime.now(UTC), "Output": output}
        return ec2_answer("GetConsoleOutput", said)

    def _quotas(self, request: Request) -> Answer | None:
        name, region = request.operation.name, request.region
        default = "Default" in name
        known = {
            each.code: quotas.said(
                each, each.value if default else self._faults.quota_value(each, region) or 0.0, region, self._account.id
            )
            for each in quotas.QUOTAS
        }
        if name.startswith("List") and name.endswith("ServiceQuotas"):
            return json_answer({"Quotas": list(known.values())})
        if name in {"GetServiceQuota", "GetAWSDefaultServiceQuota"}:
            if request.asked.get("QuotaCode") not in known:
                raise Refused("NoSuchResourceException", "The specified quota does not exist.")
            return json_answer({"Quota": known[request.asked["QuotaCode"]]})
        return None

    # --- parts -------------------------------------------------------------------------------------------------------

    def _template(self, request: Request) -> dict[str, Any]:
        named = request.asked.get("LaunchTemplate")
        if not named:
            return {}
        from moto.core.exceptions import ServiceException

        try:
            found = self._account.ec2(request.region)._get_template_from_args(named)  # noqa: SLF001 (moto's own launches use it)
        except ServiceException as error:
            raise Refused(str(error.code), str(error.message)) from None
        return dict(found.data)

    def _prepare(self, service: str, region: str) -> None:
        """Give a region what AWS has in each, once."""
        if (service, region) in self._prepared or service not in {"ec2", "ssm"}:
            return
        self._prepared.add((service, region))
        if service == "ec2":
            ec2 = self._account.ec2(region)
            add_images(ec2)
            ec2.iter_tagged_resources = all_tagged(ec2, self.fleets)
        else:
            from moto.ssm.models import ssm_backends

            add_parameters(ssm_backends[self._account.id][region], region, self._account.id)

    def _remember(self, key: tuple[str, str, str], answer: Answer) -> None:
        self._tokens[key] = answer
        while len(self._tokens) > REMEMBERED:
            self._tokens.popitem(last=False)


def _market(asked: dict[str, Any]) -> str:
    return "spot" if (asked.get("InstanceMarketOptions") or {}).get("MarketType") == "spot" else "on-demand"
