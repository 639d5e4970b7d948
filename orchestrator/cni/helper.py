# SPDX-License-Identifier: Apache-2.0
"""The warm helper: the plugin's operations over a pipe, for the agent of this host.

    python -m orchestrator.cni.helper STATE_DIR NETNS_DIR

A request is a line `{"id": 1, "op": "attach", ...}` on stdin, its answer a line `{"id": 1,
"result": ...}` or `{"id": 1, "error": {"code": .., "msg": ..., "details": ...}}` on stdout, in the
order of the requests. The process is single-threaded and ends when its stdin closes. It remembers
nothing between two requests but open files and the endpoint table, which it asks for when it has
none, so killing it loses nothing.

About one network, given as a configuration (`config`); `apply` remembers it until `remove`:

    apply       conf                    the network, its peers, its rules, its containers' cables
    attach      conf container ifname   ADD; before, make the namespace NETNS_DIR/<container> unless
                                        it is there. `runtimeConfig` and `defaultRoute` of the
                                        configuration say what the attachment asks for
    check       conf container ifname
    status      conf
    deviations  conf                    what the next `apply` would repair, as text

About all networks:

    namespace   container               make its namespace unless it is there; the path
    interfaces  container               network → interface
    disconnect  network container       DEL of the container's interfaces in one network
    detach      container               DEL of all, then remove the namespace
    collect     valid                   remove all attachments and namespaces but these containers'
    networks                            the names of those that `apply` remembers, and of these the
                                        ones that no container is on
    remove      network                 the network, and everything attached to it
    balance     table                   VIPs, published ports and policies; see `endpointtable`
    connections                         how many the kernel tracks, and of how many at most
    underlay    address vxlan           the interface with that address of this host, and its MTU;
                                        also the MTU of a tunnel device, 0 if it is not there
    expose      exposure                what of the cluster's hosts is closed to containers; see
                                        `hostaccess`
    unbalanced                          what the next `balance` would repair, as text
    tunnels     tunnels                 those of encrypted networks; see
                                        `wireguardtunnels`
    untunnel                            have none
    encryption                          why this kernel cannot encrypt, empty if it can; its keys
    bring       container interface     one that another program made, into the container; see
                                        `interfacemove`
    take_back   container interface     the other way
"""

from __future__ import annotations

import gc
import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator.cni import jsonfields
from orchestrator.cni.attachments import attachment, interfacemove, verification
from orchestrator.cni.attachments.attachment import Attachment, Host
from orchestrator.cni.balancing import endpointtable
from orchestrator.cni.balancing.balancer import Balancer
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.firewall import externalnetworks, hostaccess
from orchestrator.cni.firewall.nftables import NftError, failed
from orchestrator.cni.jsonfields import IDENTIFIER, interface
from orchestrator.cni.netconf import VERSION, NetConf, parse
from orchestrator.cni.netlink import conntrack, namespaces
from orchestrator.cni.netlink import links as netlink
from orchestrator.cni.netlink.netlinksocket import RouteSocket
from orchestrator.cni.overlay import vxlan, wireguardtunnels
from orchestrator.cni.overlay.wireguardtunnels import Tunnel
from orchestrator.cni.plugin.protocol import failure


@dataclass
class Desk:
    """What requests are served with."""

    host: Host
    namespaces: Path
    balancer: Balancer = field(default_factory=Balancer)
    exposed: hostaccess.Exposure | None = None
    """What was last to be closed to containers."""

    @cached_property
    def tunnel(self) -> Tunnel:
        """This host's end of all tunnels."""
        return Tunnel(self.host.data_dir, self.host.sock, self.host.nft)

    def container(self, request: Mapping[str, Any]) -> str:
        """The container that a request is about."""
        container = str(request.get("container", ""))
        if not IDENTIFIER.fullmatch(container):
            raise CniError(Code.INVALID_CONFIG, f"container id {container!r} is not a name")
        return container

    def target(self, request: Mapping[str, Any]) -> Attachment:
        """The attachment that a request is about."""
        container = self.container(request)
        ifname = interface(request.get("ifname", ""), "ifname")
        return Attachment(container, ifname, str(self.namespaces / container))


# -- about one network ---------------------------------------------------------------------------


def _apply(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    attachment.remember(desk.host, request["conf"])
    attachment.apply(desk.host, conf)


def _attach(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> dict[str, Any]:
    target = desk.target(request)
    made = namespaces.ensure(Path(target.netns))
    try:
        return attachment.add(desk.host, conf, target)
    except BaseException:
        if made:
            namespaces.remove(Path(target.netns))
        raise


def _check(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    verification.check(desk.host, conf, desk.target(request))


def _deviations(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"deviations": verification.deviations(desk.host, conf)}


def _status(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    verification.status(desk.host, conf)


Service = Callable[[Desk, Mapping[str, Any]], dict[str, Any] | None]
Operation = Callable[[Desk, NetConf, Mapping[str, Any]], dict[str, Any] | None]

OPERATIONS: dict[str, Operation] = {
    "apply": _apply,
    "attach": _attach,
    "check": _check,
    "status": _status,
    "deviations": _deviations,
}


# -- about all networks --------------------------------------------------------------------------


def _namespace(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    path = desk.namespaces / desk.container(request)
    if not namespaces.ensure(path):
        # It may have been made elsewhere, and be as new.
        with namespaces.opened(path) as there, namespaces.route_socket(there) as within:
            netlink.set_loopback_up(within)
    return {"path": str(path)}


def _interfaces(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    leases = desk.host.ipam.leases(container=desk.container(request))
    return {"interfaces": {lease.key.network: lease.key.ifname for lease in leases}}


def _disconnect(desk: Desk, request: Mapping[str, Any]) -> None:
    container, network = desk.container(request), str(request["network"])
    conf = attachment.known(desk.host, network)
    if conf is None:
        return
    for lease in desk.host.ipam.leases(container=container):
        if lease.key.network == network:
            gone = Attachment(container, lease.key.ifname, lease.netns)
            attachment.delete(desk.host, conf, gone)


def _detach(desk: Desk, request: Mapping[str, Any]) -> None:
    container = desk.container(request)
    attachment.retire(desk.host, container, desk.namespaces / container)


def _collect(desk: Desk, request: Mapping[str, Any]) -> None:
    valid = {str(container) for container in request.get("valid", ())}
    kept = {
        (lease.key.container, lease.key.ifname)
        for lease in desk.host.ipam.leases()
        if lease.key.container in valid
    }
    networks = desk.host.ipam.networks()
    for name in networks:
        conf = attachment.known(desk.host, name)
        if conf is not None:
            attachment.collect(desk.host, conf, kept)
    for path in sorted(desk.namespaces.glob("*")):
        if path.name not in valid:
            namespaces.remove(path)


def _networks(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    known = sorted(desk.host.ipam.networks())
    used = {lease.key.network for lease in desk.host.ipam.leases()}
    return {"networks": known, "unused": [name for name in known if name not in used]}


def _remove(desk: Desk, request: Mapping[str, Any]) -> None:
    conf = attachment.known(desk.host, str(request["network"]))
    if conf is not None:
        attachment.remove(desk.host, conf)


def _balance(desk: Desk, request: Mapping[str, Any]) -> None:
    desk.balancer.apply(desk.host.sock, desk.host.nft, endpointtable.parse(request["table"]))


def _expose(desk: Desk, request: Mapping[str, Any]) -> None:
    wanted = hostaccess.parse(jsonfields.mapping(request.get("exposure"), "exposure"))
    desk.exposed = wanted
    sock = desk.host.sock
    try:
        desk.host.nft.ensure(hostaccess.SUBJECT, hostaccess.script(wanted, _leading(sock, wanted)))
    except NftError as error:
        raise failed("ports closed to containers", error) from error
    externalnetworks.ensure(sock, desk.host.nft, wanted.checked)


def _leading(sock: RouteSocket, wanted: hostaccess.Exposure) -> list[str]:
    """The interfaces with an address of the cluster's hosts."""
    hosts = set(wanted.hosts)
    own = {index for index, present in netlink.addresses(sock) if present.ip in hosts}
    links = (netlink.get_link(sock, index=index) for index in own)
    return [link.name for link in links if link is not None]


def _unexposed(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    wanted, sock, nft = desk.exposed, desk.host.sock, desk.host.nft
    if wanted is None:
        return {"deviations": []}
    closed = hostaccess.deviations(nft, wanted, _leading(sock, wanted))
    return {"deviations": [*closed, *externalnetworks.deviations(sock, wanted.checked)]}


def _forgeries(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    found = []
    for name in sorted(desk.host.ipam.networks()):
        conf = attachment.known(desk.host, name)
        if conf is not None:
            for container, packets in attachment.forgeries(desk.host, conf).items():
                found.append({"network": name, "container": container, "packets": packets})
    checked = desk.exposed.checked if desk.exposed is not None else ()
    for guest, packets in externalnetworks.dropped(desk.host.sock, desk.host.nft, checked):
        found.append({"network": guest.network, "container": guest.container, "packets": packets})
    return {"forgeries": found}


def _connections(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    usage = conntrack.usage()
    return {"count": usage.count, "limit": usage.limit, "refused": usage.refused}


def _underlay(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    address = jsonfields.address4(request.get("address"), "address")
    under = vxlan.underlay(desk.host.sock, address)
    device = netlink.get_link(desk.host.sock, jsonfields.interface(request.get("vxlan"), "vxlan"))
    return {"device": under.name, "mtu": under.mtu, "tunnel": device.mtu if device else 0}


def _unbalanced(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"deviations": desk.balancer.deviations()}


def _tunnels(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    return desk.tunnel.apply(wireguardtunnels.parse(request["tunnels"]))


def _untunnel(desk: Desk, request: Mapping[str, Any]) -> None:
    desk.tunnel.remove()


def _encryption(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"why": wireguardtunnels.lacks(), "keys": desk.tunnel.keys()}


def _bring(desk: Desk, request: Mapping[str, Any]) -> None:
    wanted = interfacemove.parse(request["interface"])
    with namespaces.opened(desk.namespaces / desk.container(request)) as there:
        interfacemove.bring(desk.host.sock, there, wanted)


def _take_back(desk: Desk, request: Mapping[str, Any]) -> None:
    path = desk.namespaces / desk.container(request)
    if namespaces.exists(path):
        wanted = interfacemove.parse(request["interface"])
        with namespaces.opened(path) as there:
            interfacemove.take_back(there, wanted.source, wanted.ifname)


GENERAL: dict[str, Service] = {
    "namespace": _namespace,
    "interfaces": _interfaces,
    "disconnect": _disconnect,
    "detach": _detach,
    "collect": _collect,
    "networks": _networks,
    "remove": _remove,
    "balance": _balance,
    "expose": _expose,
    "unexposed": _unexposed,
    "forgeries": _forgeries,
    "connections": _connections,
    "underlay": _underlay,
    "unbalanced": _unbalanced,
    "tunnels": _tunnels,
    "untunnel": _untunnel,
    "encryption": _encryption,
    "bring": _bring,
    "take_back": _take_back,
}


def _about_network(operation: Operation, raw: Any) -> Service:
    return lambda desk, request: operation(desk, parse(raw), request)


def answer(desk: Desk, line: bytes) -> dict[str, Any]:
    """Serve one request. Never raises but for being stopped."""
    try:
        request = json.loads(line)
        number, name = request["id"], request["op"]
        serve = GENERAL.get(name) or _about_network(OPERATIONS[name], request["conf"])
    except (ValueError, TypeError, KeyError) as error:
        problem = CniError(Code.DECODING_FAILURE, "not a request of the helper", repr(error))
        return {"id": None, "error": failure(VERSION, problem)}
    try:
        return {"id": number, "result": serve(desk, request) or {}}
    except CniError as error:
        problem = error
    except OSError as error:
        problem = CniError(Code.IO_FAILURE, error.strerror or str(error), repr(error))
    except Exception as error:
        problem = CniError(Code.INTERNAL, "unexpected error in the network helper", repr(error))
    return {"id": number, "error": failure(VERSION, problem)}


def main() -> int:
    """Serve until stdin closes; a Ctrl-C is meant for the agent, which then closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported modules stay: the garbage collector need not walk them each time.
    gc.freeze()
    state_dir, netns_dir = Path(sys.argv[1]), Path(sys.argv[2])
    with Host(state_dir) as host:
        desk = Desk(host, netns_dir)
        for line in sys.stdin.buffer:
            sys.stdout.write(json.dumps(answer(desk, line)) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
