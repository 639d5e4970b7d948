# SPDX-License-Identifier: Apache-2.0
"""What a support bundle must not have in it."""

from __future__ import annotations

import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.identity.join_tokens import JoinToken
from orchestrator.supportbundle.redaction import (
    REMOVED,
    cleaned,
    is_secret_name,
    scrubbed,
    secret_values,
)

WORD = "xyzzy12345"


@pytest.mark.parametrize(
    "text",
    [
        f"password={WORD}",
        f"DB_PASSWORD: {WORD}",
        f'{{"api_key": "{WORD}", "n": 1}}',
        f"postgres://admin:{WORD}@db:5432/shop",
        f"Authorization: Bearer {WORD}",
        f"authorization: basic {WORD}==",
        f"server --db-password {WORD} --port 80",
        f"--token='{WORD} {WORD}'",
        f"GET /page?ticket={WORD}&x=1",
        f"client_secret = {WORD}",
        f"eyJhbGciOiJI.{WORD}.{WORD}",
        f"ghp_{WORD}{WORD}",
    ],
)
def test_credentials_are_redacted_in_texts(text: str) -> None:
    assert WORD not in scrubbed(text)
    assert REMOVED in scrubbed(text)


@pytest.mark.parametrize(
    "text",
    [
        'level=info msg="session opened" manager=10.0.0.1:7420',
        "https://registry.example.org:5000/team/web@sha256:0123",
        "key = /etc/orc/manager.key",
        "net.bridge.bridge-nf-pass-vlan-input-dev = 0",
        "10.0.0.0/24 dev orc0 proto static metric 10",
        "author: somebody",
    ],
)
def test_texts_without_credentials_are_unchanged(text: str) -> None:
    assert scrubbed(text) == text


def test_join_tokens_and_private_keys_are_removed() -> None:
    token = str(JoinToken("a" * 64, "b" * 30))
    assert "b" * 30 not in scrubbed(f"orc cluster join --token {token} 10.0.0.1")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for text in (f"before\n{pem}after", json.dumps({"file": pem}), pem[:120]):
        assert pem.splitlines()[1] not in scrubbed(text)
    assert scrubbed(f"before\n{pem}after").startswith("before\n")
    assert scrubbed(f"before\n{pem}after").endswith("after")


@given(st.text(max_size=200), st.text(max_size=200))
def test_known_secrets_are_redacted_anywhere(before: str, after: str) -> None:
    assert WORD not in scrubbed(before + WORD + after, {WORD})


@given(st.text(max_size=300))
def test_removal_is_idempotent(text: str) -> None:
    assert scrubbed(scrubbed(text)) == scrubbed(text)


def test_documents_keep_their_structure_when_redacted() -> None:
    document = {
        "name": "web",
        "container": {
            "env": ["PLAIN=" + WORD, "EMPTY=", "UNSET"],
            "command": ["serve", "--password", WORD, "--token=" + WORD, "--port", "80"],
            "secrets": [{"secret_id": "s1", "secret_name": "db", "target": "/run/secrets/db"}],
        },
        "environment": {"A": WORD},
        "labels": {"auth": WORD, "tier": "front", "url": f"redis://:{WORD}@cache"},
        "worker_token": WORD,
        "tls": {"private_key": WORD, "key": WORD, "cert_path": "/x"},
        "ca": b"\x00\x01",
        "replicas": 3,
        "limit": None,
    }
    kept = cleaned(document)
    assert WORD not in json.dumps(kept)
    assert kept["container"]["env"] == [f"PLAIN={REMOVED}", "EMPTY=", "UNSET"]
    assert kept["container"]["command"] == [
        *("serve", "--password", REMOVED, f"--token={REMOVED}", "--port", "80")
    ]
    assert kept["container"]["secrets"] == document["container"]["secrets"]  # type: ignore[index]
    assert kept["labels"]["tier"] == "front"
    assert (kept["name"], kept["replicas"], kept["limit"]) == ("web", 3, None)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("DB_PASSWORD", True),
        ("apiKey", True),
        ("PGPASSWORD", True),
        ("TLS_KEY", True),
        ("MY_DSN", True),
        ("PATH", False),
        ("MONKEY", False),
        ("AUTHOR", False),
        ("KEYBOARD", False),
    ],
)
def test_secret_names_are_recognised(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret
    assert secret_values([f"{name}=value"]) == ({"value"} if secret else set())
