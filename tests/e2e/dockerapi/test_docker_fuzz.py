# SPDX-License-Identifier: Apache-2.0
"""Nonsense for every published endpoint: none of it is an error of the server."""

from __future__ import annotations

import http.client
import json
import random
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from dockerclient import Docker, Run
from packagedhost import ROOT

pytestmark = [pytest.mark.root, pytest.mark.e2e]

ENDPOINTS = ROOT / "tests" / "unit" / "dockerapi" / "endpoints.txt"
LEFT_OUT = (
    # What they do to other objects is not nonsense.
    *("/containers/prune", "/images/prune", "/networks/prune", "/volumes/prune", "/build/prune"),
    "/swarm/update",
    # They call registries.
    *("/auth", "/images/create", "/images/{name}/push"),
)
ROUNDS = 3
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1 << 31, 1 << 63, 1 << 70, 0.5, "", "x", "\0", "é", "a b"),
    *("/", "::", "0.0.0.0/0", "sha256:", [], [""], ["x"], [1], [None], [{}], [[]], {}),
    *({"x": "y"}, {"x": 1}, {"x": None}, {"": []}, {"80/tcp": [{"HostPort": "x"}]}, {"Name": 1}),
)
TEXTS = (
    *("", "0", "1", "-1", "true", "x", "\0", "é", "a b", "[]", "{}", "null", '{"x":["y"]}'),
    *('{"label":[1]}', '{"name":"x"}', '{"until":["x"]}', "99999999999999999999", "1e999", "nan"),
    *("2020-01-01", "9999-12-31T23:59:59Z", "-1h", "[" * 2000),
)
NAMES = ("nosuch", "0" * 64, "a b", "\0", "..", "é", "sha256:x", "X", "a@b", "a:b:c")


def _requests(chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """Method, path with its query, and body."""
    for line in ENDPOINTS.read_text().splitlines():
        method, path, *parameters = line.split()
        if path in LEFT_OUT:
            continue
        for _ in range(ROUNDS):
            # Only questions are asked about what there is.
            names = (*NAMES, "main", "box:1", "default") if method in ("GET", "HEAD") else NAMES
            words = [
                quote(chance.choice(names), safe="") if part.startswith("{") else part
                for part in path.split("/")
            ]
            query = {name: chance.choice(TEXTS) for name in parameters if chance.random() < 0.5}
            fields: dict[str, Any] = {"Image": "box:1"} if "Image" in parameters else {}
            for name in parameters:
                if chance.random() < 0.3:
                    outer, _, inner = name.partition(".")
                    value = chance.choice(VALUES)
                    if inner and isinstance(fields.setdefault(outer, {}), dict):
                        fields[outer][inner] = value
                    else:
                        fields[outer] = value
            body = chance.choice(("", "{", "[]", "1", *(3 * [json.dumps(fields)])))
            target = f"/v1.45{'/'.join(words)}?{urlencode(query)}"
            yield method, target, "" if method in ("GET", "HEAD") else body


def _status(docker: Docker, method: str, target: str, body: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("docker")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(docker.url.removeprefix("unix://"))
    try:
        connection.request(method, target, body.encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()  # streams go on; what they say is not read
        return answer.status, answer.read(500).decode() if answer.status >= 500 else ""
    finally:
        connection.close()


@pytest.mark.parametrize("seed", range(2))
def test_nonsense_is_refused_without_an_error_of_the_server(
    docker: Docker, run: Run, seed: int
) -> None:
    run("main", "sleep 1000")
    wrong = []
    for method, target, body in _requests(random.Random(seed)):
        status, said = _status(docker, method, target, body)
        # 501 and 503 are refusals of what a cluster does not have.
        if status == 500 or not 200 <= status < 600:
            wrong.append((method, target, body, status, said))
    assert wrong == []
    assert docker.inspect("main")["State"]["Running"] is True
