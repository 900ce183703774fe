"""A signature is what AWS published for its examples, and what Amazon's own SDK makes of the same request."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as SdkCredentials
from hypothesis import given, settings, strategies as st

from mlinfra_prefect.agent.sigv4 import EMPTY_SHA256, Credentials, encoded_path, encoded_query, signed

# https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
EXAMPLE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
MOMENT = datetime(2013, 5, 24, tzinfo=UTC)
HOST = "examplebucket.s3.amazonaws.com"
PUBLISHED = {
    "GET object with a range": (
        "GET", "/test.txt", {}, {"range": "bytes=0-9"}, b"",
        "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "PUT object": (
        "PUT", "/test$file.text", {},
        {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
        b"Welcome to Amazon S3.", "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "GET a subresource": (
        "GET", "/", {"lifecycle": ""}, {}, b"", "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
    ),
    "list objects": (
        "GET", "/", {"max-keys": "2", "prefix": "J"}, {}, b"",
        "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_examples(name: str) -> None:
    """The four requests of the S3 API's own documentation."""
    method, path, query, headers, body, signature = PUBLISHED[name]
    digest = hashlib.sha256(body).hexdigest()
    found = signed(
        method, path, query, {"host": HOST, **headers}, digest, credentials=EXAMPLE, region="us-east-1", at=MOMENT
    )
    assert found["authorization"].rpartition("Signature=")[2] == signature
    assert found["x-amz-content-sha256"] == digest


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@settings(deadline=None, max_examples=60)
@given(key=TEXT, query=st.dictionaries(TEXT, TEXT, max_size=3), token=st.sampled_from(["", "a/token=="]))
def test_every_request_is_signed_as_by_the_sdk(key: str, query: dict[str, str], token: str) -> None:
    """Any key and any parameters, with and without a session: the same signature."""
    ours = Credentials("AKID", "secret", token)
    path = f"/bucket/nodes/AROA:i-1/{key}"
    found = signed(
        "GET", path, query, {"host": "s3.example"}, EMPTY_SHA256, credentials=ours, region="eu-west-1", at=MOMENT
    )
    asked = f"https://s3.example{encoded_path(path)}" + (f"?{encoded_query(query)}" if query else "")
    request = AWSRequest("GET", asked, headers={"host": "s3.example"})
    auth = S3SigV4Auth(SdkCredentials("AKID", "secret", token or None), "s3", "eu-west-1")
    request.context["timestamp"] = "20130524T000000Z"
    request.headers["X-Amz-Date"] = "20130524T000000Z"
    request.headers["X-Amz-Content-SHA256"] = EMPTY_SHA256
    if token:
        request.headers["X-Amz-Security-Token"] = token
    text = auth.string_to_sign(request, auth.canonical_request(request))
    assert found["authorization"].rpartition("Signature=")[2] == auth.signature(text, request)


def test_credentials_do_not_show_their_secrets() -> None:
    """A log that holds them holds the id only."""
    shown = repr(Credentials("AKID", "the-secret", "the-token"))
    assert "AKID" in shown
    assert "the-" not in shown
