# SPDX-License-Identifier: Apache-2.0
"""Policies: what connects to what inside a network, by the names of services."""

from __future__ import annotations

import json

import pytest
from devcluster import Cluster, eventually
from test_network import fetch

pytestmark = [pytest.mark.root, pytest.mark.e2e]

SMALL = ("--reserve-cpu", "0.05", "--reserve-memory", "16m")


def test_a_policy_is_in_force_on_every_node(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "db", "--replicas", "2", *SMALL, hello)
    web = cluster.script("web", hello, "sleep 1000", "--replicas", "2", *SMALL)
    others = cluster.script("other", hello, "sleep 1000", "--mode", "global", *SMALL)

    def reached(*tasks: object) -> list[bool]:
        page = fetch("http://db/", seconds=2)
        return [cluster.in_task(task, *page, ok=False).returncode == 0 for task in tasks]  # type: ignore[arg-type]

    eventually(lambda: all(reached(*web, *others)))
    deny = cluster.orc("network", "policy", "deny", "default", "--to", "db").stdout.strip()
    eventually(lambda: not any(reached(*web, *others)))
    allow = cluster.orc(
        "network", "policy", "allow", "default", "--from", "web", "--to", "db", "--port", "80"
    ).stdout.strip()
    eventually(lambda: all(reached(*web)))
    assert not any(reached(*others))
    # It follows the tasks: also one that is made anew.
    cluster.orc("service", "scale", "web=3")
    eventually(lambda: all(reached(*cluster.running("web"))))
    listed = json.loads(
        cluster.orc("network", "policy", "ls", "default", "--format", "json").stdout
    )
    assert [(row["action"], row["from"], row["to"], row["ports"]) for row in listed] == [
        ("deny", [], "db", []),
        ("allow", ["web"], "db", ["80/tcp"]),
    ]
    removed = cluster.orc("network", "policy", "rm", "default", deny[:12], allow).stdout.split()
    assert removed == [deny, allow]
    eventually(lambda: all(reached(*others)))


def test_invalid_policies_are_refused(cluster: Cluster, hello: str) -> None:
    cluster.orc("service", "create", "--name", "db", *SMALL, hello)
    deny = ("network", "policy", "deny", "default")
    assert "did you mean 'db'" in cluster.refused(*deny, "--to", "dbb")
    assert "no network 'nowhere'" in cluster.refused(*deny[:3], "nowhere", "--to", "db")
    cluster.orc(*deny, "--to", "db")
    assert "already has this policy" in cluster.refused(*deny, "--to", "db")
    assert "no policy 'zz'" in cluster.refused("network", "policy", "rm", "default", "zz")
    (id,) = cluster.orc("network", "policy", "ls", "default", "-q").stdout.split()
    cluster.orc("network", "policy", "rm", "default", id)
