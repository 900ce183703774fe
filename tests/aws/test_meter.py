"""Stop the meter: everything that costs by the second is told to end, in few calls, whatever refuses."""

from __future__ import annotations

import time

import boto3
import pytest
from aws_account import LEASE, LEDGER, OTHER_REGION, REGION, SHARED, Account, account, server, tagged

from mlinfra_prefect.aws import ending, meter
from mlinfra_prefect.errors import NotYetDestroyed

__all__ = ["account", "server"]  # fixtures


def stop(account: Account, **more: object) -> meter.Stopped:
    return meter.stop(account.clients, REGION, ledger_id=LEDGER, lease_id=LEASE, attempt=1, **more)


def test_a_fleet_is_ended_with_its_instances_by_two_calls(account):
    """The happy path: delete the fleet with its instances, and look by tag for more of the attempt."""
    fleet, instances = account.fleet(tagged(), count=3)
    stopped, calls = account.counted(lambda: stop(account, fleet_id=fleet, instance_ids=instances, spot=False))
    assert calls == ["DeleteFleets", "DescribeInstances"]
    assert stopped == meter.Stopped(fleets=(fleet,))
    assert not account.living() & {fleet, *instances}


def test_a_spot_fleet_leaves_no_request_behind(account):
    """A spot request that lives on is cancelled: four calls."""
    fleet, instances = account.fleet(tagged(), market="spot")
    stopped, calls = account.counted(lambda: stop(account, fleet_id=fleet, instance_ids=instances))
    assert calls == ["DeleteFleets", "DescribeInstances", "DescribeSpotInstanceRequests", "CancelSpotInstanceRequests"]
    assert len(stopped.spot_requests) == 1
    assert not any(each.startswith(("i-", "fleet-", "sir-")) for each in account.living())


def test_stopping_twice_is_stopping_once(account):
    """Idempotent: a fleet that was deleted, and instances that have ended, are success."""
    fleet, instances = account.fleet(tagged())
    stop(account, fleet_id=fleet, instance_ids=instances)
    again = stop(account, fleet_id=fleet, instance_ids=instances)
    assert again.instances == ()
    assert again.spot_requests == ()


def test_instances_of_a_fleet_that_nobody_knows_are_found_by_their_tags(account):
    """An apply that was killed has told no fleet id; the tags are there from birth."""
    _, instances = account.fleet(tagged(), count=2)
    assert set(stop(account).instances) == set(instances)
    assert not account.living() & set(instances)


def test_an_instance_that_is_known_and_has_no_tags_is_ended(account):
    """What the state names is ours, also where its tags were taken away."""
    lonely = account.instance({"Name": "untagged"})
    assert stop(account, instance_ids=[lonely]).instances == (lonely,)
    assert lonely not in account.living()


def test_nothing_at_all_is_success(account):
    """Absent is success, with and without ids that AWS has never heard of."""
    assert stop(account) == meter.Stopped()
    assert stop(account, instance_ids=["i-0123456789abcdef0"]).fleets == ()


def test_others_run_on(account):
    """Untagged, another ledger's, another lease's, another attempt's, shared, and another region's: untouched."""
    decoys = {
        account.instance({"Name": "somebody's"}),
        account.instance(tagged(ledger="another")),
        account.instance(tagged(lease="l00000000000000000000-1")),
        account.instance(tagged(attempt="2")),
        account.instance(tagged() | SHARED),
        *account.fleet(tagged(ledger="another"), market="spot")[1],
    }
    afar = account.instance(tagged(), region=OTHER_REGION)
    ours = account.instance(tagged())
    before = account.living()
    assert stop(account).instances == (ours,)
    assert before - account.living() >= {ours}
    assert decoys <= account.living()
    assert afar in account.living(OTHER_REGION)


def test_one_unknown_id_does_not_keep_the_others_running(account):
    """AWS refuses a whole call for one bad id."""
    ours = [account.instance({"Name": "untagged"}) for _ in range(3)]
    unknown = "i-0123456789abcdef0"
    stopped, calls = account.counted(lambda: stop(account, instance_ids=[ours[0], unknown, *ours[1:]], spot=False))
    assert not account.living() & set(ours)
    assert set(stopped.instances) >= set(ours)
    assert calls == ["DescribeInstances", "TerminateInstances", "TerminateInstances"]


def test_one_that_refuses_does_not_keep_the_others_running(account):
    """A protected instance is named by the error; the rest of its batch ends."""
    protected = account.instance(tagged(), protected=True)
    ours = {account.instance(tagged()) for _ in range(5)}
    with pytest.raises(NotYetDestroyed, match=protected) as raised:
        stop(account)
    assert not account.living() & ours
    assert not any(each in str(raised.value) for each in ours)
    assert protected in account.living()


def test_throttling_that_ends_is_not_noticed(account):
    """The SDK's own retries, which are bounded, are the only ones."""
    fleet, instances = account.fleet(tagged())
    account.server.proxy.fault("DeleteFleets", status=503, code="RequestLimitExceeded", times=2)
    account.server.proxy.fault("DescribeInstances", status=500, code="InternalError", times=1)
    assert stop(account, fleet_id=fleet, instance_ids=instances).fleets == (fleet,)
    assert not account.living() & {fleet, *instances}


def test_throttling_for_ever_ends_in_a_sentence(account):
    """Bounded, and named: what may run on, and why."""
    fleet, _ = account.fleet(tagged())
    account.server.proxy.fault("*", status=503, code="RequestLimitExceeded", times=None)
    began = time.monotonic()
    with pytest.raises(NotYetDestroyed, match=f"fleet {fleet}.*RequestLimitExceeded"):
        stop(account, fleet_id=fleet)
    assert time.monotonic() - began < 60


def test_a_fleet_that_cannot_be_deleted_loses_its_instances(account):
    """Instances are ended by id and tag where the fleet's own end fails; the fleet is still named."""
    fleet, instances = account.fleet(tagged(), count=2)
    account.server.proxy.fault("DeleteFleets", status=500, code="InternalError", times=None)
    with pytest.raises(NotYetDestroyed, match=fleet) as raised:
        stop(account, fleet_id=fleet, instance_ids=instances)
    assert "i-" not in str(raised.value)
    assert not account.living() & set(instances)


def test_an_end_that_was_carried_out_and_not_answered_is_an_end(account):
    """The SDK asks again, and what was ended meanwhile is success."""
    fleet, instances = account.fleet(tagged())
    account.server.proxy.fault("DeleteFleets", drop_after=True)
    assert stop(account, fleet_id=fleet, instance_ids=instances).fleets == (fleet,)
    assert not account.living() & {fleet, *instances}


def test_a_fleet_whose_instances_were_ended_by_hand_is_no_error(account):
    """moto and AWS refuse to delete it again with its instances: whether it is gone is asked, not guessed."""
    fleet, instances = account.fleet(tagged())
    account.clients("ec2", REGION).terminate_instances(InstanceIds=list(instances))
    stop(account, fleet_id=fleet, instance_ids=instances)
    assert fleet not in account.living()


def test_a_denial_names_the_permission(account):
    """Whoever reads it can act: which permission is missing."""
    account.instance(tagged())
    account.server.proxy.fault("TerminateInstances", status=403, code="UnauthorizedOperation", times=None)
    with pytest.raises(NotYetDestroyed, match="ec2:TerminateInstances"):
        stop(account)


def test_what_cannot_be_looked_for_may_run_on(account):
    """A describe that fails never reads as nothing there."""
    account.server.proxy.fault("DescribeInstances", status=403, code="UnauthorizedOperation", times=None)
    with pytest.raises(NotYetDestroyed, match="instances that carry its tags.*ec2:DescribeInstances"):
        stop(account)


def test_many_that_refuse_are_a_bounded_number_of_calls_and_one_short_sentence(account):
    """A policy that denies all of 200 machines must not become a thousand calls, nor a page of text."""
    account.server.proxy.fault("TerminateInstances", status=400, code="OperationNotPermitted", times=None)
    ids = [f"i-{number:017x}" for number in range(200)]
    before = account.server.proxy.requests
    with pytest.raises(NotYetDestroyed, match="and 192 more") as raised:
        stop(account, instance_ids=ids)
    assert account.calls(before).count("TerminateInstances") <= 2 * ending.MOST_SPLITS + 1
    assert len(str(raised.value)) < 1500


def test_an_instance_whose_interface_is_absent_is_not_gone():
    """What an answer names decides what is absent: an end that was refused is told, never taken for one."""
    from botocore.stub import Stubber

    client = boto3.session.Session().client(
        "ec2", region_name=REGION, aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    ours = "i-0123456789abcdef0"
    with Stubber(client) as stub:
        stub.add_client_error(
            "terminate_instances", "InvalidNetworkInterfaceID.NotFound",
            "The network interface ID 'eni-0123456789abcdef0' does not exist", 400,
        )  # fmt: skip
        assert set(ending.terminate(client, [ours])) == {ours}


def test_many_that_nobody_knows_are_dropped_by_name():
    """AWS names the unknown ids of a call, so the rest needs one more call, and not one for each."""
    from botocore.stub import Stubber

    client = boto3.session.Session().client(
        "ec2", region_name=REGION, aws_access_key_id="testing", aws_secret_access_key="testing"
    )
    ids = [f"i-{number:017x}" for number in range(100)]
    unknown = ", ".join(ids[:90])
    with Stubber(client) as stub:
        stub.add_client_error(
            "terminate_instances", "InvalidInstanceID.NotFound", f"The instance IDs '{unknown}' do not exist", 400,
            expected_params={"InstanceIds": ids},
        )  # fmt: skip
        stub.add_response("terminate_instances", {}, {"InstanceIds": ids[90:]})
        assert ending.terminate(client, ids) == {}
        stub.assert_no_pending_responses()


# --- what appears after its attempt was stopped -----------------------------------------------------------------------


def late(account: Account, *attempts: int, spot: bool = False) -> list[str]:
    found, problem = meter.stop_late(
        account.clients, REGION, ledger_id=LEDGER, lease_id=LEASE, attempts=set(attempts), spot=spot
    )
    if problem is not None:
        raise problem
    return [each.id for each in found]


def test_what_comes_late_is_looked_for_by_one_call_for_all_attempts(account):
    """Nothing has come: one call, however many attempts were given up, and one more where they were of spot."""
    live = account.instance(tagged(attempt="4"))
    assert account.counted(lambda: late(account, 1, 2, 3)) == ([], ["DescribeInstances"])
    assert account.counted(lambda: late(account, 1, 2, 3, spot=True)) == (
        [], ["DescribeSpotInstanceRequests", "DescribeInstances"]
    )  # fmt: skip
    assert live in account.living()


def test_what_comes_late_is_ended_and_the_live_attempt_is_not(account):
    """By the three tags: the lease's live attempt, another lease's first one and whatever is shared run on."""
    decoys = {
        account.instance(tagged(attempt="3")),
        account.instance(tagged(attempt="11")),
        account.instance(tagged(attempt="1 ")),
        account.instance(tagged(ledger="another")),
        account.instance(tagged(lease="l00000000000000000000-1")),
        account.instance(tagged() | SHARED),
        account.instance({"Name": "somebody's"}),
    }
    ours = {account.instance(tagged()), account.instance(tagged(attempt="2"))}
    assert set(late(account, 1, 2)) == ours
    assert not account.living() & ours
    assert decoys <= account.living()
    assert late(account, 1, 2) == []


def test_a_late_spot_request_is_cancelled_with_its_machine(account):
    """A request that lives on could launch another one."""
    _, (machine,) = account.fleet(tagged(), market="spot")
    assert late(account, 1, spot=True) == [machine]
    assert not any(each.startswith(("i-", "sir-")) for each in account.living())


def test_a_late_machine_that_refuses_does_not_keep_the_others_running(account):
    """It is named, so that nobody takes the look for one."""
    protected, other = account.instance(tagged(), protected=True), account.instance(tagged(attempt="2"))
    with pytest.raises(NotYetDestroyed, match=protected):
        late(account, 1, 2)
    assert other not in account.living()
    account.server.proxy.fault("DescribeInstances", status=403, code="UnauthorizedOperation", times=None)
    with pytest.raises(NotYetDestroyed, match="instances that carry its tags"):
        late(account, 1)
