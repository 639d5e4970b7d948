# SPDX-License-Identifier: Apache-2.0
"""The gateway's routes against the endpoints of the Engine API 1.45, and the page made of them.

endpoints.txt has the endpoints with the names of their parameters and of their bodies' fields, as
Docker publishes them (https://docs.docker.com/reference/api/engine/version/v1.45/).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.dockerapi.http.routing import Route
from orchestrator.dockerapi.table import ROUTER

ROOT = Path(__file__).parents[3]
PUBLISHED = {
    (method, path): parameters
    for method, path, *parameters in map(
        str.split, Path(__file__).with_name("endpoints.txt").read_text().splitlines()
    )
}
UNPUBLISHED = {
    ("POST", "/grpc"): set[str](),
    ("POST", "/build"): {"cgroupparent", "isolation", "securityopt", "ulimits"},
}
"""What Docker's clients send beyond the published."""
ALWAYS_REFUSED = "refused"


def _route(method: str, path: str) -> Route:
    return ROUTER.find(method, path.replace("{", "").replace("}", ""))[0]


@pytest.mark.parametrize(("method", "path"), PUBLISHED)
def test_published_endpoint_has_a_route_with_a_note_for_each_parameter(
    method: str, path: str
) -> None:
    route = _route(method, path)
    assert route.path == path
    if not route.summary.startswith(ALWAYS_REFUSED):
        assert [each for each in PUBLISHED[method, path] if each not in route.notes] == []


def test_routes_and_their_notes_are_of_published_endpoints() -> None:
    for route in ROUTER.routes:
        key = (route.method, route.path)
        assert key in PUBLISHED or key in UNPUBLISHED, key
        known = {*PUBLISHED.get(key, ()), *UNPUBLISHED.get(key, ())}
        assert set(route.notes) <= known, key


def test_page_of_endpoints_is_up_to_date(tmp_path: Path) -> None:
    made = tmp_path / "docker-api.md"
    script = ROOT / "scripts" / "docker-api"
    subprocess.run([sys.executable, script, made], cwd=ROOT, check=True)
    assert made.read_text() == (ROOT / "docs" / "docker-api.md").read_text(), "run 'make reference'"
