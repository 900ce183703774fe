"""One client for each service and region of a process, and AWS's refusals as decisions with the next step."""

from __future__ import annotations

import os
import sys

import pytest
from aws_facts import nobody, proxy, served
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ProfileNotFound,
    UnauthorizedSSOTokenError,
)

from mlinfra_prefect.aws import sdk
from mlinfra_prefect.errors import (
    CapacityUnavailable,
    LedgerUnavailable,
    NodeLost,
    PermanentError,
    QuotaExceeded,
    TemporaryError,
    UnsupportedHere,
)

__all__ = ["nobody", "proxy", "served"]  # fixtures

DOING = "creating the fleet of attempt 1"


def answered(code: str, message: str = "", *, status: int = 400, operation: str = "CreateFleet") -> ClientError:
    answer = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)


DENIED = (
    "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/ada is not authorized to "
    "perform: ec2:CreateFleet on resource: arn:aws:ec2:eu-central-1:123456789012:fleet/* because no identity-based "
    "policy allows the ec2:CreateFleet action. Encoded authorization failure message: x1y2z3"
)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (answered("UnauthorizedOperation", DENIED, status=403), PermanentError, "lack the permission ec2:CreateFleet"),
        (
            answered("UnauthorizedOperation", "You are not authorized to perform this operation.", status=403),
            PermanentError, "ec2:CreateFleet",
        ),
        (
            answered("AccessDeniedException", "User: x is not authorized to perform: servicequotas:GetServiceQuota"),
            PermanentError, "Allow servicequotas:GetServiceQuota in their policy",
        ),
        (
            answered("AccessDenied", "x is not authorized to perform: ec2:RunInstances with an explicit deny in a "
                     "service control policy"),
            PermanentError, "organisation denies ec2:RunInstances",
        ),
        (
            answered("AccessDenied", "x is not authorized to perform: s3:GetObject with an explicit deny in a "
                     "resource-based policy"),
            PermanentError, "a policy denies s3:GetObject",
        ),
        (answered("Forbidden", status=403, operation="HeadBucket"), PermanentError, "permission HeadBucket"),
        (answered("ExpiredToken"), PermanentError, "have expired"),
        (answered("RequestExpired"), PermanentError, "aws sso login"),
        (answered("AuthFailure", status=401), PermanentError, "does not accept the credentials (AuthFailure)"),
        (answered("InvalidClientTokenId", status=403), PermanentError, "does not accept"),
        (answered("OptInRequired", status=401), PermanentError, "enabled for this account"),
        (answered("RequestTimeTooSkewed", status=403), PermanentError, "Set the clock"),
        (answered("RequestLimitExceeded", status=503), TemporaryError, "throttles"),
        (answered("ThrottlingException"), TemporaryError, "throttles"),
        (answered("Anything", status=429), TemporaryError, "throttles"),
        (answered("InsufficientInstanceCapacity", status=500), CapacityUnavailable, "another zone"),
        (answered("UnfulfillableCapacity"), CapacityUnavailable, "another zone"),
        (answered("VcpuLimitExceeded", "You have requested more vCPU capacity"), QuotaExceeded, "Service Quotas"),
        (answered("MaxSpotInstanceCountExceeded"), QuotaExceeded, "Service Quotas"),
        (answered("InternalError", "An internal error has occurred", status=500), TemporaryError, "internal error"),
        (answered("InvalidParameterValue", "The value is bad"), PermanentError, "InvalidParameterValue, The value is"),
        (NoCredentialsError(), PermanentError, "there are no AWS credentials"),
        (NoRegionError(), PermanentError, "AWS_REGION"),
        (ProfileNotFound(profile="acme"), PermanentError, "acme"),
        (UnauthorizedSSOTokenError(), PermanentError, "aws sso login"),
        (ConnectTimeoutError(endpoint_url="https://ec2.eu-central-1.amazonaws.com"), TemporaryError, "not reached"),
        (
            EndpointConnectionError(endpoint_url="https://ec2.eu-central-1.amazonaws.com/"),
            TemporaryError, "not reached",
        ),
        (
            EndpointConnectionError(endpoint_url="https://ec2.eu-centrl-1.amazonaws.com/"),
            PermanentError, "there is no region eu-centrl-1",
        ),
    ],
)  # fmt: skip
def test_a_refusal_of_aws_is_a_decision_with_the_next_step(error, kind, says):
    problem = sdk.refused(error, DOING)
    assert type(problem) is kind
    assert says in str(problem)
    assert problem.message.startswith("Creating the fleet of attempt 1 failed:")
    assert problem.message.endswith(".")
    assert problem.remedy


def test_an_error_of_ours_stays_what_it_is():
    problem = NodeLost("The node went away.")
    assert sdk.refused(problem, DOING) is problem


@pytest.mark.parametrize("noise", ["<!doctype html><html>500</html>", "x" * 5000])
def test_a_page_or_a_flood_in_an_answer_is_not_shown(noise):
    assert len(str(sdk.refused(answered("InternalError", noise, status=500), DOING))) < 500
    assert "<html>" not in str(sdk.refused(answered("InternalError", noise, status=500), DOING))


def test_the_encoded_policy_of_a_refusal_is_not_shown():
    assert "x1y2z3" not in str(sdk.refused(answered("VcpuLimitExceeded", DENIED), DOING))


def test_a_process_has_one_client_for_each_service_and_region(proxy):
    assert sdk.client("ec2", "eu-central-1") is sdk.client("ec2", "eu-central-1")
    assert sdk.client("ec2", "eu-central-1") is not sdk.client("ec2", "eu-west-1")
    assert sdk.client("ec2", "eu-central-1") is not sdk.client("ssm", "eu-central-1")
    assert sdk.client("ec2", "eu-west-1").meta.region_name == "eu-west-1"
    assert sdk.client().meta.service_model.service_name == "s3"


def test_another_configuration_gets_clients_of_its_own(proxy, monkeypatch):
    before = sdk.client("ec2", "eu-central-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    assert sdk.client("ec2", "eu-central-1") is not before


def test_a_child_of_a_fork_gets_clients_of_its_own_even_while_a_thread_makes_one(proxy):
    before = sdk.client("ec2", "eu-central-1")
    with sdk._making:
        child = os.fork()
        if child == 0:
            os._exit(0 if sdk.client("ec2", "eu-central-1") is not before else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_region_is_said_with_the_variable_that_sets_one(proxy, nobody, monkeypatch):
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    with pytest.raises(PermanentError, match="AWS_REGION"):
        sdk.client("ec2")


def test_a_profile_that_is_not_there_is_said_of_the_ledger_and_of_everything_else(proxy, monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "acme")
    with pytest.raises(LedgerUnavailable, match="acme"):
        sdk.client()
    with pytest.raises(PermanentError, match="acme"):
        sdk.client("ec2", "eu-central-1")


def test_without_boto3_one_sentence_says_what_to_install(proxy, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "without")  # no client is kept for it
    monkeypatch.setitem(sys.modules, "botocore.config", None)
    with pytest.raises(UnsupportedHere, match=r"AWS needs boto3.*mlinfra_prefect\[aws\]"):
        sdk.client("ec2", "eu-central-1")


def test_a_missing_permission_of_a_real_call_is_named(proxy):
    proxy.fault("DescribeFleets", status=403, code="UnauthorizedOperation")
    with pytest.raises(ClientError) as caught:
        sdk.client("ec2", "eu-central-1").describe_fleets()
    assert "ec2:DescribeFleets" in str(sdk.refused(caught.value, "looking"))


@pytest.mark.parametrize("region", ["us-east-1", "eu-west-1"])
def test_a_link_to_an_object_is_one_that_its_region_takes(monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    """Newer regions refuse the older signature, and the address that serves all regions redirects."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    link = sdk.link("acme-data", "a.csv", region=region, seconds=60)
    assert "X-Amz-Signature=" in link
    assert f"%2F{region}%2Fs3%2Faws4_request" in link
    assert region == "us-east-1" or link.startswith(("https://s3.eu-west-1.", "https://acme-data.s3.eu-west-1."))
