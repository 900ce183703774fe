"""The fault proxy does what its rules say, to exactly the requests they name, and logs it."""

from __future__ import annotations

import io
import json
import threading
import time
from wsgiref.util import setup_testing_defaults

import pytest

from mlinfra_prefect.testing.aws_operations import recognised
from mlinfra_prefect.testing.faults import FaultProxy

S3 = {"authorization": "AWS4-HMAC-SHA256 Credential=AK/20260101/us-east-1/s3/aws4_request, SignedHeaders=host"}
FORM = {"content-type": "application/x-www-form-urlencoded; charset=utf-8"}


@pytest.mark.parametrize(
    ("method", "host", "path", "query", "headers", "body", "name"),
    [
        ("PUT", "127.0.0.1:5000", "/b/a/k.json", "", S3, b"Action=RunInstances", "PutObject"),
        ("GET", "127.0.0.1", "/b/a", "", S3, b"", "GetObject"),
        ("HEAD", "127.0.0.1", "/b/a", "", S3, b"", "HeadObject"),
        ("DELETE", "127.0.0.1", "/b/a", "", S3, b"", "DeleteObject"),
        ("GET", "127.0.0.1", "/b", "list-type=2&prefix=x", S3, b"", "ListObjectsV2"),
        ("GET", "b.s3.amazonaws.com", "/", "list-type=2", S3, b"", "ListObjectsV2"),
        ("PUT", "b.s3.amazonaws.com", "/a", "", S3, b"", "PutObject"),
        ("PUT", "127.0.0.1", "/b", "", S3, b"", "CreateBucket"),
        ("PUT", "127.0.0.1", "/b", "versioning", S3, b"", "PutBucketVersioning"),
        ("POST", "127.0.0.1", "/b", "delete", S3, b"", "DeleteObjects"),
        ("PUT", "127.0.0.1", "/b/a", "", {**S3, "x-amz-copy-source": "b/c"}, b"", "CopyObject"),
        ("GET", "127.0.0.1", "/", "", S3, b"", "ListBuckets"),
        ("GET", "127.0.0.1", "/b/a", "AWSAccessKeyId=AK&Signature=x&Expires=1", {}, b"", "GetObject"),
        ("PUT", "127.0.0.1", "/b/a", "X-Amz-Credential=AK/20260101/us-east-1/s3/aws4_request", {}, b"", "PutObject"),
        ("POST", "ec2.aws", "/", "", FORM, b"Action=RunInstances&Version=2016-11-15", "RunInstances"),
        ("GET", "sts.aws", "/", "Action=GetCallerIdentity", {}, b"", "GetCallerIdentity"),
        ("POST", "ddb.aws", "/", "", {"x-amz-target": "DynamoDB_20120810.GetItem"}, b"{}", "GetItem"),
        ("POST", "eks.aws", "/clusters", "", {}, b"{}", "POST /clusters"),
    ],
)
def test_operations_are_recognised_by_all_three_ways_of_aws(method, host, path, query, headers, body, name):
    """Forms, targets and S3's REST by name; the rest by method and path."""
    assert recognised(method, host, path, query, headers=headers, body=body).name == name


class Service:
    """An application that counts what it carries out."""

    def __init__(self):
        self.bodies = []

    def __call__(self, environ, start_response):
        self.bodies.append(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]


def ask(proxy, body=b"Action=RunInstances", **headers):
    told = []
    environ = {
        "REQUEST_METHOD": "POST", "CONTENT_TYPE": FORM["content-type"], "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body), **headers,
    }  # fmt: skip
    setup_testing_defaults(environ)
    answer = b"".join(proxy(environ, lambda status, _: told.append(int(status[:3]))))
    return told[0], answer


def test_each_fault_says_whether_it_was_carried_out():
    """Refused, refused after it was done, dropped before and after: and only as often as the rule says."""
    service = Service()
    proxy = FaultProxy(service)
    proxy.fault("RunInstances", status=503, code="Unavailable", times=2)
    proxy.fault("RunInstances", status=500, executed=True)
    proxy.fault("Run*", drop_before=True)
    proxy.fault("*", drop_after=True)
    proxy.fault("TerminateInstances", status=500)
    assert [ask(proxy)[0] for _ in range(2)] == [503, 503]
    assert service.bodies == []
    status, answer = ask(proxy)
    assert (status, b"<Code>InternalServerError</Code>" in answer) == (500, True)
    assert len(service.bodies) == 1
    for carried_out in (1, 2):
        with pytest.raises(ConnectionAbortedError):
            ask(proxy)
        assert len(service.bodies) == carried_out
    assert ask(proxy) == (200, b"done")
    assert service.bodies == [b"Action=RunInstances"] * 3
    phases = [each.phase for each in proxy.log]
    assert [phases.count(phase) for phase in ("received", "executed", "answered", "dropped")] == [6, 3, 4, 2]
    assert proxy.count("RunInstances", "executed", since=5) == 1


def test_errors_are_written_as_each_api_writes_them():
    """A client has to find the code in it, or it would see a parse error and no fault."""
    proxy = FaultProxy(Service())
    proxy.fault("*", times=None, status=400, code="Throttling")
    assert b"<ErrorResponse><Error><Code>Throttling</Code>" in ask(proxy)[1]
    target = {"HTTP_X_AMZ_TARGET": "DynamoDB_20120810.GetItem"}
    assert json.loads(ask(proxy, **target)[1])["__type"] == "Throttling"
    ec2 = S3["authorization"].replace("/s3/", "/ec2/")
    assert b"<Response><Errors><Error><Code>Throttling</Code>" in ask(proxy, HTTP_AUTHORIZATION=ec2)[1]


def test_a_test_can_wait_for_what_was_carried_out_and_not_answered():
    """The moment at which a client is killed; closing the proxy ends every delay."""
    proxy = FaultProxy(Service(), serial=True)
    proxy.fault("RunInstances", delay_after=60)
    answers = []
    asker = threading.Thread(target=lambda: answers.append(ask(proxy)[0]))
    asker.start()
    assert proxy.wait_for("RunInstances", "executed").status == 200
    assert answers == []
    assert ask(proxy)[0] == 200  # a delay holds nobody else up, also where one at a time is carried out
    began = time.monotonic()
    proxy.close()
    asker.join(30)
    assert answers == [200]
    assert time.monotonic() - began < 30
    with pytest.raises(TimeoutError, match="StopInstances was not received"):
        proxy.wait_for("StopInstances", seconds=0)


def test_the_emulator_forgets_on_reset(moto, bucket):
    """Accounts are the process's: `reset` is how a test gets an empty one."""
    from mlinfra_prefect.aws.sdk import client

    moto.proxy.fault("*", status=500)
    moto.reset()
    assert client().list_buckets()["Buckets"] == []
