# SPDX-License-Identifier: Apache-2.0
"""What a host and the store hold, so that what remains of a run can be told from what was there."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path

from tests.chaos.hosts import RunError, Testbed
from tests.chaos.observers import StoreObserver

Things = frozenset[tuple[str, str, str]]
"""(host, kind, name)."""

STORE_KINDS = frozenset(
    {"tasks", "services", "networks", "volumes", "documents", "names", "addresses"}
)
"""Kinds of keys that users' objects have."""

_TRANSIENT = re.compile(r"/run/orc/(helper|[^/]*\.tmp)|/proc/\d+")


def things(testbed: Testbed, store: StoreObserver) -> Things:
    """All mounts, network namespaces, links, containers and cgroups of the nodes, and all keys of
    users' objects."""
    found = {
        (host, kind, name) for host in testbed.node_hosts for kind, name in _node(testbed, host)
    }
    found |= {
        ("store", kind, name)
        for kind, name in store.keys
        if kind in STORE_KINDS and not name.endswith("//turn")
    }
    return frozenset(found)


def _node(testbed: Testbed, host: str) -> set[tuple[str, str]]:
    pid = testbed.pid(host)
    if pid is None:
        return {("host", "off")}
    found: set[tuple[str, str]] = set()
    for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines():
        place = line.split()[4]
        if not _TRANSIENT.match(place):
            found.add(("mount", place))
    for folder in ("netns", "containers"):
        with suppress(FileNotFoundError):
            names = os.listdir(f"/proc/{pid}/root/run/orc/{folder}")
            found |= {(folder, name) for name in names if not name.startswith(".")}
    with suppress(RunError):
        links = json.loads(testbed.run(host, "ip", "-j", "link", "show"))
        found |= {("link", link["ifname"]) for link in links}
    for process in (*testbed.find(host, "monitor"), *testbed.find(host, "container")):
        found.add(("process", " ".join(process.argv)[:120]))
    group = testbed.dev.plan.host(host).cgroup
    for root in Path("/sys/fs/cgroup").glob(f"*/{group}"):
        found |= {
            ("cgroup", f"{root.parent.name}/{each.name}")
            for each in root.iterdir()
            if each.is_dir()
        }
    return found
