"""The sweep of a region: finds every kind by its tags, ends it, says what refused, and touches nothing of others."""

from __future__ import annotations

import pytest
from aws_account import DEADLINE, LEASE, LEDGER, OTHER_REGION, REGION, SHARED, Account, account, server, spec, tagged
from botocore.stub import ANY, Stubber

from mlinfra_prefect.aws import kinds, sweeping, tags
from mlinfra_prefect.errors import MlinfraError, PermanentError, TemporaryError

__all__ = ["account", "server"]  # fixtures
DESCRIBES = {
    "DescribeInstances": "instances",
    "DescribeFleets": "fleets",
    "DescribeSpotInstanceRequests": "spot requests",
    "DescribeNetworkInterfaces": "network interfaces",
    "DescribeVolumes": "volumes",
    "DescribeSecurityGroups": "security groups",
    "DescribeAddresses": "elastic IPs",
    "DescribeLaunchTemplates": "launch templates",
    "GetResources": "the index of tags",
}


def search(account: Account, **more: object) -> sweeping.Found:
    return sweeping.search(account.clients, REGION, ledger_id=LEDGER, lease_id=LEASE, **more)


def until_clean(account: Account) -> int:
    """Search until nothing is found, and return how many searches it took."""
    for number in range(1, 6):
        if not search(account).found:
            return number
    raise AssertionError("never clean")


def ids(names: tuple[str, ...]) -> set[str]:
    return {name.split(" in ")[0].split()[-1] for name in names}


# --- one lease --------------------------------------------------------------------------------------------------------


def test_every_kind_is_found_and_ended(account):
    """Instances, fleets, spot requests, interfaces, volumes, groups, addresses, templates: nothing is left."""
    before = account.living()
    planted = account.everything(tagged())
    assert {each.split("-")[0] for each in planted} >= {
        "i", "fleet", "sir", "eni", "vol", "sg", "eipalloc", "lt",
    }  # fmt: skip
    first = search(account)
    assert ids(first.found) == planted
    assert {name.rsplit(" ", 3)[0] for name in first.found} == {each.name for each in kinds.KINDS}
    assert all(name.endswith(f" in {REGION}") for name in first.found)
    assert until_clean(account) <= 2
    assert account.living() == before


def test_looking_ends_nothing(account):
    """`end=False` is for `ps` and for plans."""
    planted = account.everything(tagged())
    before = account.living()
    found, calls = account.counted(lambda: search(account, end=False))
    assert found.ended == ()
    assert ids(found.found) == planted
    assert all(each.startswith(("Describe", "GetResources")) for each in calls)
    assert account.living() == before


def test_a_clean_search_is_nine_calls(account):
    """What one search in one region costs where nothing is left."""
    account.instance({"Name": "somebody's"})
    found, calls = account.counted(lambda: search(account))
    assert found == sweeping.Found()
    assert calls == ["GetResources", *(each for each in DESCRIBES if each != "GetResources")]


def test_nothing_of_others_is_touched(account):
    """Untagged, another ledger's, another lease's, shared, in another region: found by none and untouched by all."""
    decoys = (
        account.everything({"Name": "somebody's"})
        | account.everything(tagged(ledger="another"))
        | account.everything(tagged(lease="l00000000000000000000-1"))
        | account.everything(SHARED)
        | {account.volume(tagged() | SHARED), account.group(tagged() | SHARED)}
    )
    afar = account.everything(tagged(), OTHER_REGION)
    before = account.living()
    account.everything(tagged())
    account.everything(tagged(attempt="2"))
    until_clean(account)
    assert account.living() == before
    assert decoys <= before
    assert account.living(OTHER_REGION) >= afar


def test_the_dead_are_not_found(account):
    """Terminated instances, deleted fleets and cancelled requests are listed for hours, and are no survivors."""
    fleet, instances = account.fleet(tagged())
    ec2 = account.clients("ec2", REGION)
    ec2.delete_fleets(FleetIds=[fleet], TerminateInstances=True)
    index = account.clients("resourcegroupstaggingapi", REGION).get_resources()["ResourceTagMappingList"]
    assert any(instances[0] in each["ResourceARN"] for each in index), "moto's index lists the dead, as AWS's does"
    found = search(account, fleets=[fleet])
    assert {name.rsplit(" ", 3)[0] for name in found.found} == {"launch template"}
    assert search(account, fleets=[fleet]).found == ()


def test_the_index_is_read_to_its_end(account):
    """It answers in pages, of which a hundred tags are one here."""
    planted = {account.volume(tagged()) for _ in range(40)}
    found, calls = account.counted(lambda: kinds.indexed(account.clients, REGION, tags.of_lease(LEDGER, LEASE)))
    assert found == planted
    assert len(calls) > 1


def test_one_that_refuses_stops_no_other(account):
    """A protected machine among ten: the other nine go, and it is named with the reason (rule R9)."""
    protected = account.instance(tagged(), protected=True)
    planted = {account.instance(tagged()) for _ in range(9)} | {account.volume(tagged()), account.address(tagged())}
    found = search(account)
    assert ids(found.ended) == planted
    assert [each.name for each in found.refused] == [f"instance {protected} in {REGION}"]
    assert "OperationNotPermitted" in found.refused[0].reason
    assert not planted & account.living()
    assert ids(search(account).found) == {protected}, "it is found again for as long as it is there"


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [(400, "DependencyViolation", "DependencyViolation"), (403, "UnauthorizedOperation", "ec2:DeleteSecurityGroup")],
)
def test_a_refusal_says_why(account, status, code, reason):
    """What refused is found and not ended; the reason names what helps."""
    group, volume = account.group(tagged()), account.volume(tagged())
    account.server.proxy.fault("DeleteSecurityGroup", status=status, code=code, times=None)
    found = search(account)
    assert ids(found.ended) == {volume}
    assert ids((found.refused[0].name,)) == {group}
    assert reason in found.refused[0].reason


def test_an_address_in_use_is_taken_from_its_user_first(account):
    """AWS releases no address that is associated."""
    address = account.address(tagged())
    instance = account.instance({"Name": "somebody's"})
    account.clients("ec2", REGION).associate_address(AllocationId=address, InstanceId=instance)
    found, calls = account.counted(lambda: search(account))
    assert ids(found.ended) == {address}
    assert calls[-2:] == ["DisassociateAddress", "ReleaseAddress"]
    assert instance in account.living()


@pytest.mark.parametrize(("operation", "what"), list(DESCRIBES.items()))
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"status": 403, "code": "UnauthorizedOperation"}, PermanentError),
        ({"status": 503, "code": "RequestLimitExceeded"}, TemporaryError),
    ],
)
def test_what_cannot_be_seen_is_never_nothing_found(account, operation, what, fault, error):
    """Denied or throttled for ever: the search raises and names the kind; what it saw of the others has ended."""
    instance, volume = account.instance(tagged()), account.volume(tagged())
    account.server.proxy.fault(operation, times=None, **fault)
    with pytest.raises(error, match=f"{what} in {REGION}") as raised:
        search(account)
    assert raised.value.remedy
    living = account.living() if operation == "GetResources" else None
    account.server.proxy.clear()
    living = living or account.living()
    ended = {instance, volume} - {instance if what == "instances" else "", volume if what == "volumes" else ""}
    assert not ended & living
    assert all(each in str(raised.value) for each in ended)


def test_a_connection_that_breaks_is_no_answer(account):
    """Neither is a server that writes no XML."""
    account.server.proxy.fault("DescribeVolumes", drop_before=True, times=None)
    with pytest.raises(MlinfraError, match="volumes"):
        search(account)


def test_an_end_that_was_carried_out_and_not_answered_is_an_end(account):
    """A retry finds it absent, which is success."""
    volume = account.volume(tagged())
    account.server.proxy.fault("DeleteVolume", drop_after=True)
    assert ids(search(account).ended) == {volume}


# --- what moto does not do as AWS does --------------------------------------------------------------------------------


def stubbed(account: Account) -> Stubber:
    """EC2 with answers in AWS's shape, checked against the SDK's own model of the service."""
    import boto3

    return Stubber(
        boto3.session.Session().client(
            "ec2", region_name=REGION, aws_access_key_id="testing", aws_secret_access_key="testing"
        )
    )


def test_an_instant_fleet_is_asked_for_by_its_id(account):
    """AWS describes none without; its instances carry it, and so does the index of tags."""
    pairs = spec(tagged(), "fleet")[0]["Tags"]
    stub = stubbed(account)
    instance = {
        "InstanceId": "i-0a", "State": {"Name": "terminated"},
        "Tags": [*pairs, {"Key": "aws:ec2:fleet-id", "Value": "fleet-1"}],
    }  # fmt: skip
    stub.add_response(
        "describe_instances", {"Reservations": [{"Instances": [instance]}]}, {"Filters": ANY, "MaxResults": 200}
    )
    stub.add_response("describe_fleets", {"Fleets": []}, {"MaxResults": 200})
    stub.add_response(
        "describe_fleets",
        {"Fleets": [
            {"FleetId": "fleet-1", "FleetState": "active", "Type": "instant", "Tags": pairs},
            {"FleetId": "fleet-2", "FleetState": "deleted", "Type": "instant", "Tags": pairs},
        ]},
        {"FleetIds": ["fleet-1", "fleet-2"]},
    )  # fmt: skip
    stub.activate()

    def clients(service: str, region: str) -> object:
        return stub.client if service == "ec2" else account.clients(service, region)

    things, unseen = sweeping.look(
        clients, REGION, tags.of_lease(LEDGER, LEASE), only=(kinds.INSTANCE, kinds.FLEET), fleets=["fleet-2"]
    )
    stub.assert_no_pending_responses()
    assert not unseen
    assert [(each.id, each.lives) for each in things] == [("i-0a", False), ("fleet-1", True), ("fleet-2", False)]


def test_an_answer_in_pages_is_read_to_its_end(account):
    """A page may even be empty, and still not be the last."""
    pairs, stub = spec(tagged(), "volume")[0]["Tags"], stubbed(account)
    for number, rows in enumerate(([], ["vol-1"], ["vol-2"])):
        volumes = [{"VolumeId": each, "State": "available", "Tags": pairs} for each in rows]
        token = {"NextToken": str(number)} if number else {}
        more = {"NextToken": str(number + 1)} if number < 2 else {}
        stub.add_response(
            "describe_volumes", {"Volumes": volumes, **more}, {"Filters": ANY, "MaxResults": 200, **token}
        )  # fmt: skip
    stub.activate()
    found = kinds.describe(lambda *_: stub.client, REGION, kinds.VOLUME, tags.of_lease(LEDGER, LEASE))
    assert [each.id for each in found] == ["vol-1", "vol-2"]
    stub.assert_no_pending_responses()


@pytest.mark.parametrize("state", ["running", "shutting-down"])
def test_what_goes_with_its_instance_is_not_fought_over(account, state):
    """A root disk and an interface are found until they are gone, and are not deleted by hand meanwhile."""
    pairs, stub = spec(tagged(), "volume")[0]["Tags"], stubbed(account)
    instance = {"InstanceId": "i-0a", "State": {"Name": state}, "Tags": pairs}
    held = {"InstanceId": "i-0a", "DeleteOnTermination": True}
    stub.add_response("describe_instances", {"Reservations": [{"Instances": [instance]}]})
    stub.add_response(
        "describe_network_interfaces",
        {"NetworkInterfaces": [{"NetworkInterfaceId": "eni-1", "TagSet": pairs, "Attachment": held}]},
    )
    disks = [
        {"VolumeId": "vol-1", "State": "in-use", "Tags": pairs, "Attachments": [held]},
        {"VolumeId": "vol-2", "State": "in-use", "Tags": pairs, "Attachments": [held | {"DeleteOnTermination": False}]},
        {"VolumeId": "vol-3", "State": "deleting", "Tags": pairs},
    ]
    stub.add_response("describe_volumes", {"Volumes": disks})
    if state == "running":
        stub.add_response("terminate_instances", {}, {"InstanceIds": ["i-0a"]})
    stub.add_client_error("delete_volume", "VolumeInUse", "vol-2 is attached", expected_params={"VolumeId": "vol-2"})
    stub.activate()

    def clients(service: str, region: str) -> object:
        return stub.client if service == "ec2" else account.clients(service, region)

    things, _ = sweeping.look(
        clients, REGION, tags.of_lease(LEDGER, LEASE), only=(kinds.INSTANCE, kinds.INTERFACE, kinds.VOLUME)
    )
    found = sweeping.end(clients, sweeping.Carried(REGION, LEDGER, LEASE, tuple(things)))
    stub.assert_no_pending_responses()
    assert ids(found.found) == ({"i-0a"} if state == "running" else set()) | {"eni-1", "vol-1", "vol-2"}
    assert ids(found.ended) == ({"i-0a"} if state == "running" else set())
    assert ids(found.going) == {"eni-1", "vol-1"}
    assert {each.name: each.reason for each in found.refused} == {
        f"volume vol-2 in {REGION}": "VolumeInUse: vol-2 is attached",
    }


def test_a_fleet_that_aws_has_forgotten_is_gone(account):
    """One unknown id has the whole question refused: it is asked for the rest."""
    stub = stubbed(account)
    pairs = spec(tagged(), "fleet")[0]["Tags"]
    stub.add_response("describe_fleets", {"Fleets": []}, {"MaxResults": 200})
    stub.add_client_error(
        "describe_fleets", "InvalidFleetId.NotFound", "The fleet ID 'fleet-2' does not exist", 400,
        expected_params={"FleetIds": ["fleet-1", "fleet-2"]},
    )  # fmt: skip
    stub.add_response(
        "describe_fleets", {"Fleets": [{"FleetId": "fleet-1", "FleetState": "active", "Tags": pairs}]},
        {"FleetIds": ["fleet-1"]},
    )  # fmt: skip
    stub.activate()
    things, unseen = sweeping.look(
        lambda service, region: stub.client if service == "ec2" else account.clients(service, region), REGION,
        tags.of_lease(LEDGER, LEASE), only=(kinds.FLEET,), fleets=["fleet-1", "fleet-2"],
    )  # fmt: skip
    assert [each.id for each in things] == ["fleet-1"]
    assert not unseen


def test_a_name_of_the_index_whose_tags_changed_is_not_ours(account):
    """The index is late: what its service says of the tags decides."""
    stub = stubbed(account)
    stub.add_response("describe_fleets", {"Fleets": []}, {"MaxResults": 200})
    other = spec(tagged(lease="l00000000000000000000-1"), "fleet")[0]["Tags"]
    stub.add_response(
        "describe_fleets", {"Fleets": [{"FleetId": "fleet-1", "FleetState": "active", "Tags": other}]},
        {"FleetIds": ["fleet-1"]},
    )  # fmt: skip
    stub.activate()
    things, _ = sweeping.look(
        lambda service, region: stub.client if service == "ec2" else account.clients(service, region), REGION,
        tags.of_lease(LEDGER, LEASE), only=(kinds.FLEET,), fleets=["fleet-1"],
    )  # fmt: skip
    assert things == []


# --- everybody's ------------------------------------------------------------------------------------------------------


def test_the_account_sweep_groups_by_ledger_and_lease(account):
    """One group for each lease of each ledger, with what it needs to be judged; untagged and shared are in none."""
    other = "l00000000000000000000-1"
    account.everything({"Name": "somebody's"})
    account.volume(SHARED)
    ours = {account.instance(tagged()), account.instance(tagged(attempt="2", deadline=str(DEADLINE + 60)))}
    account.volume(tagged(lease=other))
    account.volume(tagged(ledger="another", environment="prod", deadline="soon"))
    found = sweeping.carriers(account.clients, REGION)
    assert [(each.ledger_id, each.lease_id) for each in found] == [(LEDGER, other), (LEDGER, LEASE), ("another", LEASE)]
    mine, foreign = found[1], found[2]
    assert ids(mine.names) == ours
    assert mine.attempts == (1, 2)
    assert mine.deadline == DEADLINE + 60
    assert mine.created is not None
    assert mine.environment == "dev"
    assert (foreign.deadline, foreign.environment) == (None, "prod")
    only = sweeping.carriers(account.clients, REGION, ledger_id="another")
    assert [each.ledger_id for each in only] == ["another"]


def test_only_what_is_past_its_own_deadline_is_overdue(account):
    """A later attempt of the same lease is not ended for an earlier one's deadline (rule R8)."""
    early, late = account.instance(tagged()), account.instance(tagged(attempt="2", deadline=str(DEADLINE + 3600)))
    broken = account.instance(tagged(attempt="3", deadline="soon"))
    (carried,) = sweeping.carriers(account.clients, REGION)
    assert carried.overdue(DEADLINE + 299.0, 300.0) is None
    due = carried.overdue(DEADLINE + 300.0, 300.0)
    assert due is not None
    assert ids(due.names) == {early}
    assert ids(sweeping.end(account.clients, due).ended) == {early}
    assert {late, broken} <= account.living()


def test_a_carrier_is_ended_whole_and_alone(account):
    """What the reaper decides upon is ended, and nothing beside it."""
    decoys = account.everything(tagged(ledger="another"))
    account.everything(tagged())
    for _ in range(2):
        for carried in sweeping.carriers(account.clients, REGION, ledger_id=LEDGER):
            sweeping.end(account.clients, carried)
    assert sweeping.carriers(account.clients, REGION, ledger_id=LEDGER) == ()
    assert decoys <= account.living()


def test_the_account_sweep_fails_closed(account):
    """An empty tuple says that there is nothing, and only that."""
    account.server.proxy.fault("DescribeLaunchTemplates", status=403, code="UnauthorizedOperation", times=None)
    with pytest.raises(PermanentError, match="launch templates.*ec2:DescribeLaunchTemplates"):
        sweeping.carriers(account.clients, REGION)
