# SPDX-License-Identifier: Apache-2.0
"""Answers of Prometheus, and of what is none."""

from __future__ import annotations

import json

import pytest

from orchestrator.manager.leader.prometheus_queries import (
    QueryFailed,
    ask_prometheus,
    check_url,
    value_of,
)
from tests.freeports import free_ports


def answer(kind: str, result: object) -> bytes:
    return json.dumps(
        {"status": "success", "data": {"resultType": kind, "result": result}}
    ).encode()


def test_the_value_is_a_number_or_the_sum_of_samples() -> None:
    assert value_of(answer("scalar", [1.0, "2.5"])) == 2.5
    samples = [{"metric": {}, "value": [1.0, "2"]}, {"metric": {}, "value": [1.0, "0.5"]}]
    assert value_of(answer("vector", samples)) == 2.5


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (answer("vector", []), "no samples"),
        (answer("matrix", []), "is a matrix"),
        (answer("scalar", [1.0, "NaN"]), "value is nan"),
        (answer("scalar", [1.0, "+Inf"]), "value is inf"),
        (answer("scalar", [1.0]), "not Prometheus'"),
        (answer("vector", {"a": 1}), "not Prometheus'"),
        (b"<html>", "not Prometheus'"),
        (b"[]", "not Prometheus'"),
        (b"\xff", "not Prometheus'"),
    ],
)
def test_what_is_no_value_is_named(data: bytes, words: str) -> None:
    with pytest.raises(QueryFailed, match=words):
        value_of(data)


def test_urls() -> None:
    assert check_url("") == ""
    assert check_url("http://10.0.0.5:9090/") == "http://10.0.0.5:9090"
    assert check_url("https://metrics.example.com/prometheus") != ""
    for text in ("10.0.0.5:9090", "file:///etc/passwd", "http://", "http://a/?b=c", "http://[a"):
        with pytest.raises(ValueError, match="is not the URL of a Prometheus"):
            check_url(text)


async def test_no_server_is_named() -> None:
    with pytest.raises(QueryFailed, match=r"cannot ask http://127\.0\.0\.1:.*refused"):
        await ask_prometheus(f"http://127.0.0.1:{free_ports(1)}", "up")
