# SPDX-License-Identifier: Apache-2.0
"""What a run leaves: on the hosts, in the store, in the logs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.chaos.history import Crash
from tests.chaos.hosts import RunError, Testbed
from tests.chaos.observers import StoreObserver

Things = frozenset[tuple[str, str, str]]
"""(host, kind, name)."""

LONGEST = 4000
"""Characters of an unexpected error that are kept: the last ones."""

STORE_KINDS = frozenset(
    {"tasks", "services", "networks", "volumes", "documents", "names", "addresses"}
)
"""Kinds of keys that users' objects have."""

_TRANSIENT = re.compile(r"/run/orc/(helper|[^/]*\.tmp)|/proc/\d+")


def things(testbed: Testbed, store: StoreObserver) -> Things:
    """All mounts, network namespaces, links, containers and cgroups of the nodes, the number of
    managers' processes, and all keys of users' objects."""
    found = {
        (host, kind, name) for host in testbed.node_hosts for kind, name in _node(testbed, host)
    }
    found |= {
        (host, "process", f"{program}: {len(testbed.find(host, program))}")
        for host in testbed.manager_hosts
        for program in ("manager", "etcd")
    }
    found |= {
        ("store", kind, name)
        for kind, name in store.keys
        if kind in STORE_KINDS and not name.endswith("//turn")
    }
    return frozenset(found)


_ENDED = ", in <module>"
"""What a traceback has that ended the program: others are logged by what goes on."""


_REFUSALS = ("CliError", "ClickException", "ManagerLost", "Refused", "Unsupported", "UsageError")
"""Errors of commands: one line for users, which ORC_DEBUG prints with its traceback."""


def _is_refusal(block: list[str]) -> bool:
    """Whether a traceback is that of an error in words."""
    last = next((text for text in reversed(block) if text.strip() and text[0] not in " |+"), "")
    return last.partition(":")[0].rpartition(".")[2].strip() in _REFUSALS


def crashes(host: str, log: Path) -> Iterator[Crash]:
    """The unexpected errors in a daemon's log: what stands between its structured lines."""
    block: list[str] = []
    with log.open(errors="replace") as file:
        for text in (*file, "time="):
            if not text.startswith("time="):
                block.append(text)
                continue
            if any(_ENDED in each for each in block) and not _is_refusal(block):
                yield Crash(host, log.name, "".join(block)[-LONGEST:])
            block.clear()


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
