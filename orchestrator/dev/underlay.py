# SPDX-License-Identifier: Apache-2.0
"""The network between dev hosts: a bridge, veth pairs to each host and the machine, partitions.

Uses iproute2 and nft in batches: a dev cluster creates a handful of links, once, and its steps can
be read and repeated by hand.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from orchestrator.dev.devplan import ClusterPlan, DevError, HostPlan, Route, link_name, parse_routes

BRIDGE = "switch"
UPLINK = "machine"
PARTITION = "orcdev_partition"


def run(argv: Sequence[str], stdin: str = "") -> str:
    """Run a command, return its stdout. Raises DevError with its stderr if it fails."""
    try:
        # It inherits the lock of `locked()`: if this process is killed, the lock outlasts it.
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=False, close_fds=False
        )
    except FileNotFoundError:
        raise DevError(f"{argv[0]} is not installed: run scripts/setup") from None
    if done.returncode != 0:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[0]
        raise DevError(f"{' '.join(argv)}: {reason}")
    return done.stdout


def _switch(cluster: str) -> str:
    return f"orcdev-{cluster}"


def _switch_exists(cluster: str) -> bool:
    return Path("/run/netns", _switch(cluster)).exists()


def exists(cluster: str, tag: str) -> bool:
    """Whether the cluster's switch exists, complete or not."""
    return _switch_exists(cluster) or Path("/sys/class/net", link_name(tag)).exists()


@contextmanager
def locked() -> Iterator[None]:
    """Lock the allocation of subnets in this network namespace, across root file systems."""
    descriptor = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    os.set_inheritable(descriptor, True)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def routes() -> list[Route]:
    """The machine's routes, without the default route."""
    return parse_routes(run(["ip", "-j", "-4", "route", "show", "table", "all"]))


def _is_complete(cluster: str) -> bool:
    """Whether the last step of `ensure_switch` was done and the machine is still connected."""
    try:
        ports = run(["ip", "-n", _switch(cluster), "-br", "link", "show", "master", BRIDGE])
    except DevError:
        return False
    return any(line.startswith(f"{UPLINK}@") for line in ports.splitlines())


def ensure_switch(plan: ClusterPlan) -> None:
    """Create the switch and the machine's veth pair to it; an incomplete one is recreated.

    The caller holds `locked()`. Raises DevError if the cluster's subnet is in use.
    """
    link, switch = link_name(plan.tag), _switch(plan.name)
    if exists(plan.name, plan.tag) and _is_complete(plan.name):
        return
    remove_switch(plan.name, plan.tag)
    _check_free(plan)
    run(["ip", "netns", "add", switch])
    run(
        ["ip", "-n", switch, "-batch", "-"],
        f"link set lo up\nlink add {BRIDGE} type bridge forward_delay 0\nlink set {BRIDGE} up\n",
    )
    # The machine's end gets its address first, which claims the subnet.
    run(
        ["ip", "-batch", "-"],
        f"link add {link} type veth peer name {UPLINK} netns {switch}\n"
        f"link set {link} alias {_alias(plan)}\n"
        f"address add {plan.gateway}/{plan.subnet.prefixlen} dev {link}\n"
        f"link set {link} up\n",
    )
    run(["ip", "-n", switch, "link", "set", UPLINK, "up", "master", BRIDGE])


def _alias(plan: ClusterPlan) -> str:
    """Alias of the machine's link: names the user of the subnet for people and other clusters."""
    return f"dev-cluster-{plan.name}-of-{socket.gethostname()}"


def _check_free(plan: ClusterPlan) -> None:
    """Raises DevError if another cluster took the subnet while this one was disconnected, as after
    a reboot. Certificates of hosts contain their addresses, so the subnet cannot change."""
    for route in routes():
        if route.to.overlaps(plan.subnet):
            alias = Path("/sys/class/net", route.link, "ifalias")
            user = (alias.read_text().strip() if alias.exists() else "") or f"link {route.link}"
            raise DevError(
                f"the subnet {plan.subnet} of dev cluster {plan.name!r} is in use by {user}: "
                "remove that one, or this cluster with 'orc dev down'"
            )


def remove_switch(cluster: str, tag: str) -> None:
    """Remove the switch and the machine's veth pair; no-op if they are gone."""
    link, switch = link_name(tag), _switch(cluster)
    _remove(lambda: Path("/sys/class/net", link).exists(), ["ip", "link", "del", link])
    _remove(lambda: _switch_exists(cluster), ["ip", "netns", "del", switch])


def _remove(exists: Callable[[], bool], argv: Sequence[str]) -> None:
    """Run `argv`, which removes something that `exists`. The kernel may remove it concurrently, as
    it cleans a namespace up."""
    if not exists():
        return
    try:
        run(argv)
    except DevError:
        if exists():
            raise


def ensure_plugged(plan: ClusterPlan, host: HostPlan, init_pid: int) -> None:
    """Connect a host: its veth pair (`eth0`), address and default route."""
    # The route is added last and disappears with the link.
    if run(["nsenter", "-t", str(init_pid), "-n", "ip", "-4", "route", "show", "default"]):
        return
    unplug(host)
    switch = _switch(plan.name)
    run(
        ["ip", "-n", switch, "-batch", "-"],
        f"link add {host.name} type veth peer name eth0 address {host.mac} netns {init_pid}\n"
        f"link set {host.name} up master {BRIDGE}\n",
    )
    run(
        ["nsenter", "-t", str(init_pid), "-n", "ip", "-batch", "-"],
        f"link set lo up\naddress add {host.address}/{plan.subnet.prefixlen} dev eth0\n"
        f"link set eth0 up\nroute add default via {plan.gateway}\n",
    )


def unplug(host: HostPlan) -> None:
    """Remove a host's veth pair, at the switch's end, if it exists."""
    switch = _switch(host.cluster)

    def is_plugged() -> bool:
        if not _switch_exists(host.cluster):
            return False
        ports = run(["ip", "-n", switch, "-br", "link", "show", "type", "veth"])
        return any(line.split("@")[0] == host.name for line in ports.splitlines())

    _remove(is_plugged, ["ip", "-n", switch, "link", "del", host.name])


def ensure_partition(init_pid: int, reachable: Iterable[IPv4Address]) -> None:
    """Block all packets of a host except with the `reachable` addresses."""
    peers = ", ".join(str(address) for address in reachable)
    arriving = f"iifname eth0 ip saddr {{ {peers} }} accept;" if peers else ""
    leaving = f"oifname eth0 ip daddr {{ {peers} }} accept;" if peers else ""
    _nft(
        init_pid,
        f"""
        table inet {PARTITION} {{}}
        delete table inet {PARTITION}
        table inet {PARTITION} {{
            chain arriving {{
                type filter hook prerouting priority -400;
                {arriving} iifname eth0 drop
            }}
            chain leaving {{
                type filter hook postrouting priority -400;
                {leaving} oifname eth0 drop
            }}
        }}
        """,
    )


def remove_partition(init_pid: int) -> None:
    """Remove a host's partition."""
    _nft(init_pid, f"table inet {PARTITION} {{}}\ndelete table inet {PARTITION}\n")


def _nft(init_pid: int, script: str) -> None:
    run(["nsenter", "-t", str(init_pid), "-n", "nft", "-f", "-"], script)
