"""The node's own clients of S3 and of its metadata: what passes is tried again, what does not is said."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mlinfra_prefect.agent.bucket import Bucket, BucketError, Listed
from mlinfra_prefect.agent.imds import Imds, ImdsError, RoleCredentials
from mlinfra_prefect.agent.sigv4 import Credentials


class Service:
    """An HTTP server that answers what the test says, in order, and notes what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.clients: list[Bucket] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service.asked.append((self.command, self.path, dict(self.headers.items()), body))
                answer = service.answers.pop(0)
                if answer == "drop":
                    self.close_connection = True
                    return
                status, headers, data = answer
                self.send_response_only(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
                if headers.get("X-Then") == "close":  # without a word, as an idle connection is closed
                    self.close_connection = True

            def do_GET(self) -> None:
                self._do()

            def do_PUT(self) -> None:
                self._do()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def error(status: int, code: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return status, headers, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()


class Keys:
    """Credentials that are counted."""

    def __init__(self, lifetime: float = 3600.0) -> None:
        self.asked = 0
        self.lifetime = lifetime

    def __call__(self) -> RoleCredentials:
        self.asked += 1
        expires = datetime.now(UTC).timestamp() + self.lifetime
        return RoleCredentials(Credentials(f"AK{self.asked}", "secret", "token"), expires)


def bucket(service: Service, keys: Callable[[], RoleCredentials] | None = None) -> Bucket:
    service.clients.append(Bucket("b", "us-east-1", service.url, keys or Keys(), sleep=lambda _: None))
    return service.clients[-1]


@pytest.mark.parametrize(
    "bad",
    [
        error(500, "InternalError"), error(503, "SlowDown"), error(429, "TooManyRequests"), "drop",
        error(400, "RequestTimeout"),
    ],
    ids=["500", "503", "429", "dropped", "timed out"],
)  # fmt: skip
def test_what_passes_is_tried_again_a_few_times(service: Service, bad: Any) -> None:
    """Two bad answers are no news; one after the other for ever is."""
    service.answers = [bad, bad, (200, {}, b"body")]
    assert bucket(service).get("k") == b"body"
    service.answers = [bad] * 4
    with pytest.raises(BucketError):
        bucket(service).get("k")
    assert service.answers == []


def test_a_refusal_is_said_at_once(service: Service) -> None:
    """403 and 404 do not pass; who may not list a bucket hears 403 for a key that is not there."""
    service.answers = [error(403, "InvalidAccessKey"), error(403, "SignatureDoesNotMatch"), error(404, "NoSuchBucket")]
    service.answers += [error(404, "NoSuchKey"), error(403, "AccessDenied")]
    for absent in (False, False, False, True, True):
        with pytest.raises(BucketError) as caught:
            bucket(service).get("k")
        assert caught.value.absent is absent


def test_a_wrong_clock_is_set_by_what_s3_says(service: Service) -> None:
    """RequestTimeTooSkewed: the next request carries the time of the answer's Date, and so do all after it."""
    theirs = datetime.now(UTC) + timedelta(hours=5)
    service.answers = [error(403, "RequestTimeTooSkewed", Date=format_datetime(theirs, usegmt=True))]
    service.answers += [(200, {}, b""), (200, {}, b"")]
    asked = bucket(service)
    asked.put("k", b"x")
    asked.put("k", b"x")
    stamps = [datetime.strptime(each[2]["x-amz-date"], "%Y%m%dT%H%M%S%z") for each in service.asked]
    assert abs((stamps[0] - datetime.now(UTC)).total_seconds()) < 60
    assert all(abs((stamp - theirs).total_seconds()) < 60 for stamp in stamps[1:])


def test_a_bucket_elsewhere_is_asked_in_its_own_region(service: Service) -> None:
    """The node may be in another region than the bucket: S3 says which, and the signature is for that one."""
    service.answers = [error(400, "AuthorizationHeaderMalformed", **{"x-amz-bucket-region": "eu-west-1"})]
    service.answers += [(200, {}, b"there")]
    assert bucket(service).get("k") == b"there"
    assert ["us-east-1" in each[2]["authorization"] for each in service.asked] == [True, False]
    assert "/eu-west-1/s3/" in service.asked[1][2]["authorization"]


def test_credentials_that_ended_are_fetched_anew(service: Service) -> None:
    """ExpiredToken: at once and once; credentials refused for ever are an error, not a loop."""
    keys = Keys()
    service.answers = [error(400, "ExpiredToken"), (200, {}, b"x")]
    assert bucket(service, keys).get("k") == b"x"
    assert keys.asked == 2
    service.answers = [error(400, "ExpiredToken")] * 2
    with pytest.raises(BucketError, match="ExpiredToken"):
        bucket(service, keys).get("k")
    assert service.answers == []


def test_credentials_are_fetched_once_while_they_hold_and_kept_while_no_others_come(service: Service) -> None:
    """Old ones rather than none: S3 has the last word on them."""
    keys = Keys()
    asked = bucket(service, keys)
    service.answers = [(200, {}, b"")] * 4
    for _ in range(3):
        asked.put("k", b"x")
    assert keys.asked == 1

    ending, calls = Keys(lifetime=200.0), []

    def fails_later() -> RoleCredentials:
        calls.append(1)
        if len(calls) > 1:
            raise ImdsError("no answer")
        return ending()

    late = bucket(service, fails_later)
    service.answers = [(200, {}, b"")] * 2
    late.put("k", b"x")
    late._ask_at = 0.0
    late.put("k", b"x")
    assert len(calls) == 2


def test_a_connection_that_was_closed_while_idle_costs_no_try(service: Service) -> None:
    """Keep-alive ends on the other side without a word."""
    pauses: list[float] = []
    asked = Bucket("b", "us-east-1", service.url, Keys(), sleep=pauses.append)
    service.clients.append(asked)
    service.answers = [(200, {"X-Then": "close"}, b"1"), (200, {}, b"2")]
    assert (asked.get("k"), asked.get("k")) == (b"1", b"2")
    assert pauses == []


def test_an_answer_that_is_too_large_is_not_read(service: Service) -> None:
    """A block has a largest size; the connection is not used again."""
    service.answers = [(200, {}, b"x" * 100), (200, {}, b"ok")]
    asked = bucket(service)
    with pytest.raises(BucketError, match="TooLarge"):
        asked.get("k", most=10)
    assert asked.get("k", most=10) == b"ok"


def test_a_listing_goes_on_where_a_page_ended(service: Service) -> None:
    """Keys with characters that XML and addresses encode; the tags without their quotes."""
    page = (
        '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Contents><Key>{}</Key>'
        "<LastModified>2026-01-01T00:00:0{}.000Z</LastModified><ETag>&quot;e&quot;</ETag><Size>1</Size></Contents>{}"
        "</ListBucketResult>"
    )
    more = "<NextContinuationToken>a b+/=</NextContinuationToken>"
    service.answers = [
        (200, {}, page.format("p/a&amp;b", 1, more).encode()),
        (200, {}, page.format("p/c", 2, "").encode()),
    ]
    found = bucket(service).list("p/", after="p/0")
    assert found == [Listed("p/a&b", "e", "2026-01-01T00:00:01.000Z"), Listed("p/c", "e", "2026-01-01T00:00:02.000Z")]
    assert "continuation-token=a%20b%2B%2F%3D" in service.asked[1][1]
    assert "start-after=p%2F0" in service.asked[0][1]
    service.answers = [(200, {}, b"<not xml")]
    with pytest.raises(BucketError, match="UnreadableAnswer"):
        bucket(service).list("p/")


def test_the_address_of_a_bucket_is_its_own_host_on_aws() -> None:
    """Without an endpoint: virtual-hosted, and China's own domain."""
    assert Bucket("b", "eu-west-1", "", Keys())._host() == ("b.s3.eu-west-1.amazonaws.com", True)
    assert Bucket("b", "cn-north-1", "", Keys())._host() == ("b.s3.cn-north-1.amazonaws.com.cn", True)
    assert Bucket("b", "x", "https://s3.example:8443", Keys())._host() == ("s3.example:8443", False)


def test_metadata_is_asked_with_a_token_that_is_renewed_when_it_is_refused(service: Service) -> None:
    """IMDSv2: 401 fetches another token; the path of the endpoint stays before everything."""
    role = json.dumps({
        "AccessKeyId": "A", "SecretAccessKey": "S", "Token": "T", "Expiration": "2030-01-01T00:00:00Z",
    }).encode()  # fmt: skip
    service.answers = [
        (200, {}, b"t1"), (401, {}, b""), (200, {}, b"t2"), (200, {}, b"i-1"), (200, {}, b"role\n"), (200, {}, role),
    ]  # fmt: skip
    imds = Imds(f"{service.url}/_instance/i-1")
    assert imds.instance_id() == "i-1"
    found = imds.credentials()
    assert (found.credentials, found.expires) == (Credentials("A", "S", "T"), 1893456000.0)
    assert all(each[1].startswith("/_instance/i-1/latest/") for each in service.asked)
    assert service.asked[3][2]["X-aws-ec2-metadata-token"] == "t2"


def test_what_metadata_does_not_tell_is_an_error_without_any_secret(service: Service) -> None:
    """No role, no service, half a document."""
    service.answers = [(200, {}, b"t"), (404, {}, b"")]
    with pytest.raises(ImdsError, match="security-credentials"):
        Imds(service.url).credentials()
    service.answers = [(200, {}, b"t"), (200, {}, b"role"), (200, {}, b'{"SecretAccessKey": "hush"}')]
    with pytest.raises(ImdsError, match="role role cannot be read") as caught:
        Imds(service.url).credentials()
    assert "hush" not in str(caught.value)
    with pytest.raises(ImdsError, match="http"):
        Imds("ftp://x")
