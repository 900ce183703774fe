"""The node asks Secrets Manager and Parameter Store as the SDK does, and says what was wrong without a value."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as SdkCredentials

from mlinfra_prefect.agent import secret_stores
from mlinfra_prefect.agent.imds import ImdsError, RoleCredentials
from mlinfra_prefect.agent.references import Reference
from mlinfra_prefect.agent.secret_stores import SecretStores, Unread
from mlinfra_prefect.agent.sigv4 import Credentials

CANARY = "canary-5b8e07"
KEYS = RoleCredentials(Credentials("AKNODE", "secret", "token"), time.time() + 3600)


class Service:
    """An HTTP server that answers what the test says, in order, and notes what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, Any]]] = []
        self.asked: list[tuple[dict[str, str], bytes]] = []
        self.date = datetime.now(UTC)
        self.cut_short = 0
        service = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.asked.append(({name.lower(): value for name, value in self.headers.items()}, body))
                status, told = service.answers.pop(0)
                data = json.dumps(told).encode()
                self.send_response_only(status)
                self.send_header("Date", format_datetime(service.date, usegmt=True))
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                short, service.cut_short = service.cut_short, 0
                self.wfile.write(data[: len(data) - short])

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(secret_stores, "PAUSE_SECONDS", 0.01)
    made = Service()
    yield made
    made.close()


def stores(service: Service) -> SecretStores:
    return SecretStores("eu-central-1", service.url, lambda: KEYS)


def refusal(code: str) -> tuple[int, dict[str, Any]]:
    return 400, {"__type": f"com.amazonaws#{code}", "message": f"about {CANARY}"}


@pytest.mark.parametrize(
    ("text", "target", "asked", "scope"),
    [
        ("aws-sm:team/hf", "secretsmanager.GetSecretValue", {"SecretId": "team/hf"}, "eu-central-1/secretsmanager"),
        ("ssm:/team/hf", "AmazonSSM.GetParameter", {"Name": "/team/hf", "WithDecryption": True}, "eu-central-1/ssm"),
        ("ssm:arn:aws:ssm:us-west-2:123456789012:parameter/hf", "AmazonSSM.GetParameter",
         {"Name": "arn:aws:ssm:us-west-2:123456789012:parameter/hf", "WithDecryption": True}, "us-west-2/ssm"),
    ],
)  # fmt: skip
def test_it_is_asked_as_amazons_own_sdk_asks(
    service: Service, text: str, target: str, asked: dict[str, Any], scope: str
) -> None:
    """The operation, and a signature that the SDK makes of the same request."""
    told = {"Parameter": {"Value": CANARY}} if text.startswith("ssm:") else {"SecretString": CANARY}
    service.answers = [(200, told)]
    assert stores(service).answer({"TOKEN": text}) == {"TOKEN": CANARY}
    ((headers, body),) = service.asked
    assert (headers["x-amz-target"], json.loads(body)) == (target, asked)
    signed = AWSRequest("POST", f"{service.url}/", data=body, headers={
        name: headers[name] for name in ("content-type", "x-amz-target", "x-amz-content-sha256")
    })  # fmt: skip
    signed.context["timestamp"] = headers["x-amz-date"]
    region, name = scope.split("/")
    auth = SigV4Auth(SdkCredentials("AKNODE", "secret", "token"), name, region)
    signed.headers["X-Amz-Date"], signed.headers["X-Amz-Security-Token"] = headers["x-amz-date"], "token"
    canonical = auth.canonical_request(signed)
    wanted = auth.signature(auth.string_to_sign(signed, canonical), signed)
    assert headers["authorization"].endswith(f"Signature={wanted}")
    assert f"/{scope}/aws4_request" in headers["authorization"]


@pytest.mark.parametrize(
    ("text", "value"), [('{"key": "canary-5b8e07", "n": 1}', CANARY), ('{"key": 7}', "7"), ('{"key": true}', "true")]
)
def test_a_key_means_one_value_of_a_json_object(service: Service, text: str, value: str) -> None:
    """Texts as they are; numbers and truth values as JSON writes them."""
    service.answers = [(200, {"SecretString": text})]
    assert stores(service).answer({"TOKEN": "aws-sm:db#key"}) == {"TOKEN": value}


@pytest.mark.parametrize(
    ("reference", "told", "says"),
    [
        ("aws-sm:db#key", {"SecretString": CANARY}, "is no JSON object with a 'key'"),
        ("aws-sm:db#key", {"SecretString": f'{{"other": "{CANARY}"}}'}, "is no JSON object with a 'key'"),
        ("aws-sm:db#key", {"SecretString": f'["{CANARY}"]'}, "is no JSON object with a 'key'"),
        ("aws-sm:db#key", {"SecretString": f'{{"key": ["{CANARY}"]}}'}, "the value is no text and no number"),
        ("aws-sm:db", {"SecretBinary": CANARY}, "holds bytes, and a variable holds text"),
        ("ssm:/db", {"Other": CANARY}, "the answer of ssm cannot be read"),
    ],
)
def test_what_is_no_text_is_said_without_what_it_is(
    service: Service, reference: str, told: dict[str, Any], says: str
) -> None:
    """The variable and the reference are named, and nothing of the answer."""
    service.answers = [(200, told)]
    said = stores(service).answer({"TOKEN": reference})
    assert isinstance(said, str)
    assert said.startswith(f"secrets.TOKEN: {reference.partition('#')[0]}")
    assert says in said
    assert CANARY not in said


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (refusal("AccessDeniedException"), "may not read it (AccessDeniedException); grant it with `init aws --secret"),
        ((400, {"__type": "AccessDeniedException", "Message": "Access to KMS is not allowed"}), "may not use the key"),
        (refusal("ResourceNotFoundException"), "there is none in eu-central-1"),
        (refusal("DecryptionFailure"), "secretsmanager answers DecryptionFailure"),
        ((403, {}), "secretsmanager answers 403"),
    ],
)  # fmt: skip
def test_a_refusal_is_said_at_once_with_its_remedy(
    service: Service, answer: tuple[int, dict[str, Any]], says: str
) -> None:
    """Of AWS's own words only the code: nobody promises what its sentences quote."""
    service.answers = [answer]
    said = stores(service).answer({"TOKEN": "aws-sm:db"})
    assert says in str(said)
    assert CANARY not in str(said)
    assert len(service.asked) == 1


def test_what_may_pass_is_asked_again(service: Service) -> None:
    """Throttling and faults of AWS; a wrong clock is set by what the answer says."""
    service.date = datetime.now(UTC) + timedelta(hours=3)
    service.answers = [
        refusal("ThrottlingException"), (500, {}), refusal("InvalidSignatureException"), (200, {"SecretString": "x"})
    ]  # fmt: skip
    assert stores(service).answer({"TOKEN": "aws-sm:db"}) == {"TOKEN": "x"}
    stamp = datetime.strptime(service.asked[-1][0]["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs(stamp - service.date) < timedelta(seconds=30)


@pytest.mark.parametrize("missing", [1, 9])
def test_an_answer_that_was_cut_short_is_asked_for_again(service: Service, missing: int) -> None:
    """Its connection ended early: what there is of it is no answer."""
    service.cut_short = missing
    service.answers = [(200, {"SecretString": "x"})] * 2
    assert stores(service).answer({"TOKEN": "aws-sm:db"}) == {"TOKEN": "x"}
    assert len(service.asked) == 2


def test_a_signature_that_stays_wrong_is_no_clock(service: Service) -> None:
    """The clock is set once."""
    service.answers = [refusal("InvalidSignatureException")] * 2
    assert "answers InvalidSignatureException" in str(stores(service).answer({"TOKEN": "aws-sm:db"}))


def test_reading_ends_in_time_with_the_last_problem() -> None:
    """Before the launcher gives up: it is to hear why."""

    def none() -> RoleCredentials:
        raise ImdsError("the instance has no role")

    unreachable = SecretStores("eu-central-1", "http://127.0.0.1:9", none)
    with pytest.raises(Unread, match=r"aws-sm:db could not be read by the node \(ImdsError: the instance has no role"):
        unreachable.read(Reference.parse("aws-sm:db"), time.monotonic())
