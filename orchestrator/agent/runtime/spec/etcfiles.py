# SPDX-License-Identifier: Apache-2.0
"""Content of the files that the agent mounts into a container's `/etc`. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.agent.runtime.interface import Container, RuntimeFailure
from orchestrator.agent.runtime.spec.node_facts import NodeFacts, is_loopback

ETC_FILES = ("hostname", "hosts", "resolv.conf")
MAX_HOSTNAME = 64


def hostname(container: Container) -> str:
    """The container's hostname: as specified, else the first 12 characters of its id.

    Raises RuntimeFailure when it exceeds the kernel's limit.
    """
    name = container.hostname or container.spec.container.hostname or container.id[:12]
    if len(name.encode()) > MAX_HOSTNAME:
        raise RuntimeFailure(f"the hostname `{name}` is longer than {MAX_HOSTNAME} characters")
    return name


def etc_files(container: Container, node: NodeFacts) -> dict[str, str]:
    """The texts of `ETC_FILES`."""
    spec = container.spec.container
    name = hostname(container)
    names = f"{name}.{spec.domainname} {name}" if spec.domainname else name
    hosts = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::\tip6-localnet",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
    ]
    for entry in spec.hosts:
        other, _, address = entry.partition(":")
        hosts.append(f"{address}\t{other}")
    if container.address:
        hosts.append(f"{container.address}\t{names}")
    return {
        "hostname": f"{name}\n",
        "hosts": _lines(hosts),
        "resolv.conf": _lines(_resolver(container, node)),
    }


def _resolver(container: Container, node: NodeFacts) -> list[str]:
    """The lines of resolv.conf(5): the network's name server, which forwards to those of the spec
    or the node. Without a network, and if the spec's servers are in the container itself, the
    spec's servers, else the node's.

    The network's server resolves names of any number of labels, so names are tried as they are
    first (`ndots:0`), and only then with the node's search domains.
    """
    spec = container.spec.container
    within = any(is_loopback(server) for server in spec.dns)
    network = () if within else container.nameservers
    servers = network or spec.dns or node.nameservers
    lines = [f"nameserver {server}" for server in servers]
    search: tuple[str, ...] = ()
    if spec.dns_search:
        search = tuple(domain for domain in spec.dns_search if domain != ".")
    elif not spec.dns:
        search = node.search
    if search:
        lines.append(f"search {' '.join(search)}")
    options = spec.dns_options
    if network and not any("ndots" in each for each in options):
        options = ("ndots:0", *options)
    if options:
        lines.append(f"options {' '.join(options)}")
    return lines


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
