"""With `iam=True` the account does what the policies of a request's credentials allow, and nothing else."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError
from emulated_cloud import TAGS, Cloud

from mlinfra_prefect.testing.aws import Emulator
from mlinfra_prefect.testing.aws.policies import allowed


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    """The administrator's clients of an account whose policies hold."""
    with Emulator(iam=True) as emulator:
        yield Cloud(emulator)


def session(cloud, *statements, name="someone"):
    """Make a role with these statements, and return what a client needs to be it, and its user id."""
    iam = cloud.client("iam")
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    document = {"Version": "2012-10-17", "Statement": list(statements)}
    iam.put_role_policy(RoleName=name, PolicyName="only", PolicyDocument=json.dumps(document))
    said = cloud.client("sts").assume_role(RoleArn=arn, RoleSessionName="i-0123456789abcdef0")
    keys = said["Credentials"]
    who = {"key": keys["AccessKeyId"], "secret": keys["SecretAccessKey"], "token": keys["SessionToken"]}
    return who, said["AssumedRoleUser"]["AssumedRoleId"]


def allow(action, resource="*", **more):
    """Return a statement that allows."""
    return {"Effect": "Allow", "Action": action, "Resource": resource, **more}


def deny(action, **more):
    """Return a statement that denies."""
    return {"Effect": "Deny", "Action": action, "Resource": "*", **more}


def denied(call, **asked):
    """Return the code of a refusal."""
    with pytest.raises(ClientError) as caught:
        call(**asked)
    return caught.value.response["Error"]["Code"], str(caught.value)


def test_the_administrator_may_everything_and_a_stranger_nothing(cloud):
    """A stranger's keys are unknown, whatever the service."""
    cloud.client("s3").create_bucket(Bucket="private")
    stranger = {"key": "AKIAIOSFODNN7EXAMPLE", "secret": "nothing"}
    assert denied(cloud.client("ec2", **stranger).describe_instances)[0] == "AuthFailure"
    assert denied(cloud.client("s3", **stranger).list_objects_v2, Bucket="private")[0] == "InvalidAccessKeyId"
    assert denied(cloud.client("iam", **stranger).list_roles)[0] == "InvalidClientTokenId"


def test_a_secret_is_read_by_its_resource_whatever_it_is_asked_by(cloud):
    """A name stands for the ARN with its six characters; what is not there is not told from what is not allowed."""
    secrets, ssm = cloud.client("secretsmanager"), cloud.client("ssm")
    for name in ("ours", "ours-too"):
        secrets.create_secret(Name=name, SecretString=name)
        ssm.put_parameter(Name=f"/{name}", Value=name, Type="SecureString")
    account = cloud.emulator.account
    who, _ = session(
        cloud, allow("secretsmanager:GetSecretValue", f"arn:aws:secretsmanager:us-east-1:{account}:secret:ours-??????"),
        allow("ssm:GetParameter", f"arn:aws:ssm:us-east-1:{account}:parameter/ours"),
    )  # fmt: skip
    mine, its = cloud.client("secretsmanager", **who), cloud.client("ssm", **who)
    assert mine.get_secret_value(SecretId="ours")["SecretString"] == "ours"
    assert its.get_parameter(Name="/ours", WithDecryption=True)["Parameter"]["Value"] == "ours"
    for refused in ("ours-too", "absent"):
        assert denied(mine.get_secret_value, SecretId=refused)[0] == "AccessDeniedException"
        assert denied(its.get_parameter, Name=f"/{refused}")[0] == "AccessDeniedException"


def test_a_missing_permission_is_named(cloud):
    """In the refusal, as AWS names it, for what moto answers and for what the emulator does itself."""
    who, _ = session(cloud, allow(["ec2:Describe*", "ec2:CreateLaunchTemplate"]))
    ec2 = cloud.client("ec2", **who)
    ec2.describe_instances()
    template = cloud.template()
    asked = {
        "Type": "instant", "TargetCapacitySpecification": {"TotalTargetCapacity": 1},
        "LaunchTemplateConfigs": [{"LaunchTemplateSpecification": {"LaunchTemplateId": template, "Version": "1"}}],
    }  # fmt: skip
    code, text = denied(ec2.create_fleet, **asked)
    assert code == "UnauthorizedOperation"
    assert "ec2:CreateFleet" in text
    assert (
        "ec2:RunInstances"
        in denied(ec2.run_instances, ImageId=cloud.image, InstanceType="g5.xlarge", MinCount=1, MaxCount=1)[1]
    )
    assert (
        denied(cloud.client("service-quotas", **who).list_service_quotas, ServiceCode="ec2")[0]
        == "AccessDeniedException"
    )
    assert cloud.emulator.instances == ()


def test_a_node_reaches_its_own_prefix_and_no_other(cloud):
    """By the variable that stands for its role and instance; reading, writing and listing each by its own line."""
    s3 = cloud.client("s3")
    s3.create_bucket(Bucket="artifacts")
    own = "arn:aws:s3:::artifacts/nodes/${aws:userid}"
    who, user_id = session(
        cloud, allow("s3:GetObject", f"{own}/in/*"), allow(["s3:PutObject", "s3:GetObject"], f"{own}/out/*"),
        allow("s3:ListBucket", "arn:aws:s3:::artifacts",
              Condition={"StringLike": {"s3:prefix": "nodes/${aws:userid}/*"}}),
    )  # fmt: skip
    node = cloud.client("s3", **who)
    for key in (f"nodes/{user_id}/in/grant", "nodes/another/in/grant", "checkpoints/1"):
        s3.put_object(Bucket="artifacts", Key=key, Body=b"x")
    node.get_object(Bucket="artifacts", Key=f"nodes/{user_id}/in/grant")
    node.put_object(Bucket="artifacts", Key=f"nodes/{user_id}/out/index.json", Body=b"{}")
    assert node.list_objects_v2(Bucket="artifacts", Prefix=f"nodes/{user_id}/in/")["KeyCount"] == 1
    for call, asked in (
        (node.put_object, {"Key": f"nodes/{user_id}/in/grant", "Body": b"x"}),
        (node.get_object, {"Key": "nodes/another/in/grant"}), (node.get_object, {"Key": "checkpoints/1"}),
        (node.put_object, {"Key": "nodes/another/out/x", "Body": b"x"}),
        (node.list_objects_v2, {"Prefix": "nodes/"}), (node.list_objects_v2, {}),
        (node.delete_object, {"Key": f"nodes/{user_id}/out/index.json"}),
        (node.delete_objects, {"Delete": {"Objects": [{"Key": "checkpoints/1"}]}}),
    ):  # fmt: skip
        assert denied(call, Bucket="artifacts", **asked)[0] == "AccessDenied"
    url = s3.generate_presigned_url("get_object", {"Bucket": "artifacts", "Key": "checkpoints/1"})
    assert urllib.request.urlopen(url).read() == b"x"


def test_what_has_the_tag_may_be_ended_and_a_decoy_not(cloud):
    """A condition on the resource's tags, for one of several ids too."""
    mine = cloud.fleet(cloud.template()).instances[0]
    decoy = cloud.ec2.run_instances(ImageId=cloud.image, InstanceType="g5.xlarge", MinCount=1, MaxCount=1)
    decoy = decoy["Instances"][0]["InstanceId"]
    ledger = {"StringEquals": {"ec2:ResourceTag/mlinfra-prefect:ledger": TAGS["mlinfra-prefect:ledger"]}}
    who, _ = session(cloud, allow("ec2:TerminateInstances", Condition=ledger))
    ec2 = cloud.client("ec2", **who)
    assert denied(ec2.terminate_instances, InstanceIds=[decoy])[0] == "UnauthorizedOperation"
    assert denied(ec2.terminate_instances, InstanceIds=[mine, decoy])[0] == "UnauthorizedOperation"
    ec2.terminate_instances(InstanceIds=[mine])


def test_a_launch_without_the_tag_is_refused(cloud):
    """A condition on the request's tags."""
    tagged = {"StringLike": {"aws:RequestTag/mlinfra-prefect:lease": "*"}}
    who, _ = session(cloud, allow("ec2:RunInstances", Condition=tagged))
    ec2 = cloud.client("ec2", **who)
    asked = {"ImageId": cloud.image, "InstanceType": "g5.xlarge", "MinCount": 1, "MaxCount": 1}
    assert denied(ec2.run_instances, **asked)[0] == "UnauthorizedOperation"
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "mlinfra-prefect:lease", "Value": "lease-1"}]}]
    ec2.run_instances(**asked, TagSpecifications=tags)


RUN, LIST = ("ec2:RunInstances", None), ("s3:ListBucket", None)
SECURE = {"aws:securetransport": ("true",)}


@pytest.mark.parametrize(
    ("statements", "asked", "context", "expected"),
    [
        ([allow("s3:Get*", "arn:aws:s3:::b/*")], ("s3:GetObject", "arn:aws:s3:::b/k"), {}, True),
        ([allow("s3:Get*", "arn:aws:s3:::b/*")], ("s3:GetObject", "arn:aws:s3:::c/k"), {}, False),
        ([allow("S3:getobject", "*")], ("s3:GetObject", "arn:aws:s3:::c/k"), {}, True),
        ([allow("*"), deny("ec2:*")], RUN, {}, False),
        ([{"Effect": "Allow", "NotAction": "iam:*", "Resource": "*"}], ("iam:CreateRole", None), {}, False),
        ([{"Effect": "Allow", "Action": "*", "NotResource": "arn:aws:s3:::b"}], ("s3:X", "arn:aws:s3:::b"), {}, False),
        # A variable that is a star is a text, and one that is not known matches nothing.
        ([allow("*", "arn:aws:s3:::${aws:userid}")], ("s3:X", "arn:aws:s3:::b"), {"aws:userid": ("*",)}, False),
        ([allow("*", "arn:aws:s3:::${aws:username}")], ("s3:X", "arn:aws:s3:::"), {}, False),
        ([allow("*", Condition={"Null": {"aws:RequestTag/x": "true"}})], RUN, {}, True),
        ([allow("*", Condition={"StringNotEquals": {"aws:RequestTag/x": "1"}})], RUN, {}, True),
        ([allow("*", Condition={"StringEqualsIfExists": {"aws:RequestTag/x": "1"}})], RUN, {}, True),
        ([allow("*", Condition={"StringEquals": {"aws:RequestTag/x": "1"}})], RUN, {}, False),
        ([allow("*", Condition={"ForAllValues:StringEquals": {"aws:TagKeys": ["a", "b"]}})], RUN,
         {"aws:tagkeys": ("a", "c")}, False),
        ([allow("*", Condition={"StringEquals": {"s3:prefix": ["a", "b"]}})], LIST, {"s3:prefix": ("b",)}, True),
        ([allow("*", Condition={"Bool": {"aws:SecureTransport": True}})], LIST, SECURE, True),
        # What only AWS knows neither lets in by a Deny nor keeps out by an Allow.
        ([allow("*", Condition={"StringEquals": {"aws:SourceVpce": "vpce-1"}})], LIST, {}, True),
        ([allow("*"), deny("*", Condition={"StringEquals": {"aws:SourceVpce": "vpce-1"}})], LIST, {}, True),
        ([], LIST, {}, False),
    ],
)  # fmt: skip
def test_policies_are_read_as_iam_reads_them(statements, asked, context, expected):
    """By action, resource, variable and condition; a denial is stronger than any number of allowances."""
    assert allowed([{"Version": "2012-10-17", "Statement": statements}], *asked, context) is expected
