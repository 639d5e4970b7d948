# SPDX-License-Identifier: Apache-2.0
"""The network helper: the plugin's operations over a pipe, for the agent of this host.

    python -m orchestrator.cni.helper STATE_DIR NETNS_DIR

A request is a line `{"id": 1, "op": "attach", ...}` on stdin, its answer a line `{"id": 1,
"result": ...}` or `{"id": 1, "error": {"code": .., "msg": ..., "details": ...}}` on stdout, in the
order of the requests. The process is single-threaded and ends when its stdin closes. Between two
requests it keeps only open files and the endpoint table, which it requests when it has none, so
killing it loses nothing.

About one network, given as a configuration (`conf`); `apply` records it until `remove`:

    apply                 conf                    the network, its peers, rules, and veth pairs
    attach                conf container ifname   ADD; creates the namespace NETNS_DIR/<container>
                                                  unless it exists. `runtimeConfig` and
                                                  `defaultRoute` are the attachment's settings
    check                 conf container ifname   CHECK
    status                conf                    STATUS
    deviations            conf                    what the next `apply` would repair, as text

About all networks:

    namespace             container               create its namespace unless it exists; the path
    interfaces            container               network → interface
    disconnect            network container       DEL of the container's interfaces in one network
    detach                container               DEL of all, then remove the namespace
    collect               valid                   remove all attachments and namespaces except those
                                                  of these containers
    networks                                      names of the recorded networks, and of those
                                                  without containers
    remove                network                 the network, and everything attached to it
    balance               table                   VIPs, published ports and policies; see
                                                  `endpointtable`
    balance_deviations                            what the next `balance` would repair, as text
    connections                                   usage of the connection tracking table
    underlay              address vxlan           the interface with that address of this host, and
                                                  its MTU; the MTU of a VXLAN device, 0 without it
    expose                exposure                access of containers to the cluster's hosts; see
                                                  `hostaccess`
    exposure_deviations                           what the next `expose` would repair, as text
    forgeries                                     dropped packets with forged sources, by container
    tunnels               tunnels                 WireGuard tunnels; see `wireguardtunnels`
    remove_tunnels                                remove all tunnels
    encryption                                    why this kernel cannot encrypt, empty if it can;
                                                  the keys of this host
    move_interface_in     container interface     move an interface of another program into the
                                                  container; see `interfacemove`
    move_interface_out    container interface     move it back
"""

from __future__ import annotations

import gc
import json
import os
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
from orchestrator.cni.overlay.wireguardtunnels import WireGuardTunnels
from orchestrator.cni.plugin.protocol import failure


@dataclass
class HelperState:
    """The state with which requests are served."""

    host: Host
    namespaces: Path
    balancer: Balancer = field(default_factory=Balancer)
    exposed: hostaccess.Exposure | None = None
    """The last `expose` request."""

    @cached_property
    def tunnels(self) -> WireGuardTunnels:
        """This host's WireGuard tunnels."""
        return WireGuardTunnels(self.host.data_dir, self.host.sock, self.host.nft)

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


def _apply(state: HelperState, conf: NetConf, request: Mapping[str, Any]) -> None:
    attachment.remember(state.host, request["conf"])
    attachment.apply(state.host, conf)


def _attach(state: HelperState, conf: NetConf, request: Mapping[str, Any]) -> dict[str, Any]:
    target = state.target(request)
    made = namespaces.ensure(Path(target.netns))
    try:
        return attachment.add(state.host, conf, target)
    except BaseException:
        if made:
            namespaces.remove(Path(target.netns))
        raise


def _check(state: HelperState, conf: NetConf, request: Mapping[str, Any]) -> None:
    verification.check(state.host, conf, state.target(request))


def _deviations(state: HelperState, conf: NetConf, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"deviations": verification.deviations(state.host, conf)}


Service = Callable[[HelperState, Mapping[str, Any]], dict[str, Any] | None]
Operation = Callable[[HelperState, NetConf, Mapping[str, Any]], dict[str, Any] | None]

OPERATIONS: dict[str, Operation] = {
    "apply": _apply,
    "attach": _attach,
    "check": _check,
    "deviations": _deviations,
}


# -- about all networks --------------------------------------------------------------------------


def _namespace(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    path = state.namespaces / state.container(request)
    if not namespaces.ensure(path):
        # Another program may have created it, with loopback down.
        with namespaces.opened(path) as there, namespaces.route_socket(there) as within:
            netlink.set_loopback_up(within)
    return {"path": str(path)}


def _interfaces(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    leases = state.host.ipam.leases(container=state.container(request))
    return {"interfaces": {lease.key.network: lease.key.ifname for lease in leases}}


def _disconnect(state: HelperState, request: Mapping[str, Any]) -> None:
    container, network = state.container(request), str(request["network"])
    conf = attachment.known(state.host, network)
    if conf is None:
        return
    for lease in state.host.ipam.leases(container=container):
        if lease.key.network == network:
            gone = Attachment(container, lease.key.ifname, lease.netns)
            attachment.delete(state.host, conf, gone)


def _detach(state: HelperState, request: Mapping[str, Any]) -> None:
    container = state.container(request)
    attachment.detach_container(state.host, container, state.namespaces / container)


def _collect(state: HelperState, request: Mapping[str, Any]) -> None:
    valid = {str(container) for container in request.get("valid", ())}
    kept = {
        (lease.key.container, lease.key.ifname)
        for lease in state.host.ipam.leases()
        if lease.key.container in valid
    }
    networks = state.host.ipam.networks()
    for name in networks:
        conf = attachment.known(state.host, name)
        if conf is not None:
            attachment.collect(state.host, conf, kept)
    for path in sorted(state.namespaces.glob("*")):
        if path.name not in valid:
            namespaces.remove(path)


def _networks(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    known = sorted(state.host.ipam.networks())
    used = {lease.key.network for lease in state.host.ipam.leases()}
    return {"networks": known, "unused": [name for name in known if name not in used]}


def _remove(state: HelperState, request: Mapping[str, Any]) -> None:
    conf = attachment.known(state.host, str(request["network"]))
    if conf is not None:
        attachment.remove(state.host, conf)


def _balance(state: HelperState, request: Mapping[str, Any]) -> None:
    state.balancer.apply(state.host.sock, state.host.nft, endpointtable.parse(request["table"]))


def _expose(state: HelperState, request: Mapping[str, Any]) -> None:
    wanted = hostaccess.parse(jsonfields.mapping(request.get("exposure"), "exposure"))
    state.exposed = wanted
    sock = state.host.sock
    try:
        state.host.nft.ensure(
            hostaccess.SUBJECT, hostaccess.script(wanted, _underlay_interfaces(sock, wanted))
        )
    except NftError as error:
        raise failed("ports closed to containers", error) from error
    externalnetworks.ensure(sock, state.host.nft, wanted.checked)


def _underlay_interfaces(sock: RouteSocket, wanted: hostaccess.Exposure) -> list[str]:
    """The interfaces with an address of the cluster's hosts."""
    hosts = set(wanted.hosts)
    own = {index for index, present in netlink.addresses(sock) if present.ip in hosts}
    links = (netlink.get_link(sock, index=index) for index in own)
    return [link.name for link in links if link is not None]


def _exposure_deviations(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    wanted, sock, nft = state.exposed, state.host.sock, state.host.nft
    if wanted is None:
        return {"deviations": []}
    closed = hostaccess.deviations(nft, wanted, _underlay_interfaces(sock, wanted))
    return {"deviations": [*closed, *externalnetworks.deviations(sock, wanted.checked)]}


def _forgeries(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    found = []
    for name in sorted(state.host.ipam.networks()):
        conf = attachment.known(state.host, name)
        if conf is not None:
            for container, packets in attachment.forgeries(state.host, conf).items():
                found.append({"network": name, "container": container, "packets": packets})
    checked = state.exposed.checked if state.exposed is not None else ()
    for guest, packets in externalnetworks.dropped(state.host.sock, state.host.nft, checked):
        found.append({"network": guest.network, "container": guest.container, "packets": packets})
    return {"forgeries": found}


def _connections(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    usage = conntrack.usage()
    return {"count": usage.count, "limit": usage.limit, "refused": usage.refused}


def _underlay(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    address = jsonfields.address4(request.get("address"), "address")
    under = vxlan.underlay(state.host.sock, address)
    device = netlink.get_link(state.host.sock, jsonfields.interface(request.get("vxlan"), "vxlan"))
    return {"device": under.name, "mtu": under.mtu, "tunnel": device.mtu if device else 0}


def _balance_deviations(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"deviations": state.balancer.deviations()}


def _tunnels(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    return state.tunnels.apply(wireguardtunnels.parse(request["tunnels"]))


def _remove_tunnels(state: HelperState, request: Mapping[str, Any]) -> None:
    state.tunnels.remove()


def _encryption(state: HelperState, request: Mapping[str, Any]) -> dict[str, Any]:
    return {"why": wireguardtunnels.unsupported_reason(), "keys": state.tunnels.keys()}


def _move_interface_in(state: HelperState, request: Mapping[str, Any]) -> None:
    wanted = interfacemove.parse(request["interface"])
    with namespaces.opened(state.namespaces / state.container(request)) as there:
        interfacemove.move_in(state.host.sock, there, wanted)


def _move_interface_out(state: HelperState, request: Mapping[str, Any]) -> None:
    path = state.namespaces / state.container(request)
    if namespaces.exists(path):
        wanted = interfacemove.parse(request["interface"])
        with namespaces.opened(path) as there:
            interfacemove.move_out(there, wanted.source, wanted.ifname)


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
    "exposure_deviations": _exposure_deviations,
    "forgeries": _forgeries,
    "connections": _connections,
    "underlay": _underlay,
    "balance_deviations": _balance_deviations,
    "tunnels": _tunnels,
    "remove_tunnels": _remove_tunnels,
    "encryption": _encryption,
    "move_interface_in": _move_interface_in,
    "move_interface_out": _move_interface_out,
}


def _about_network(operation: Operation, raw: Any) -> Service:
    return lambda state, request: operation(state, parse(raw), request)


def answer(state: HelperState, line: bytes) -> dict[str, Any]:
    """Serve one request. Raises only what ends the process."""
    try:
        request = json.loads(line)
        number, name = request["id"], request["op"]
        serve = GENERAL.get(name) or _about_network(OPERATIONS[name], request["conf"])
    except (ValueError, TypeError, KeyError) as error:
        problem = CniError(Code.DECODING_FAILURE, "not a request of the helper", repr(error))
        return {"id": None, "error": failure(VERSION, problem)}
    try:
        return {"id": number, "result": serve(state, request) or {}}
    except CniError as error:
        problem = error
    except OSError as error:
        problem = CniError(Code.IO_FAILURE, error.strerror or str(error), repr(error))
    except Exception as error:
        problem = CniError(Code.INTERNAL, "unexpected error in the network helper", repr(error))
    return {"id": number, "error": failure(VERSION, problem)}


def main() -> int:
    """Serve until stdin closes. SIGINT is for the agent, which then closes it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Imported modules stay: the garbage collector need not walk them each time.
    gc.freeze()
    state_dir, netns_dir = Path(sys.argv[1]), Path(sys.argv[2])
    with Host(state_dir) as host:
        state = HelperState(host, netns_dir)
        for line in sys.stdin.buffer:
            try:
                sys.stdout.write(json.dumps(answer(state, line)) + "\n")
                sys.stdout.flush()
            except BrokenPipeError:
                # The agent was killed. What is buffered must not fail once more at the exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                break
    return 0


if __name__ == "__main__":
    sys.exit(main())
