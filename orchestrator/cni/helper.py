"""The warm helper: the plugin's operations over a pipe, for the agent of this host.

    python -m orchestrator.cni.helper STATE_DIR NETNS_DIR

A request is a line `{"id": 1, "op": "attach", ...}` on stdin, its answer a line `{"id": 1,
"result": ...}` or `{"id": 1, "error": {"code": .., "msg": ..., "details": ...}}` on stdout, in the
order of the requests. The process is single-threaded and ends when its stdin closes. It remembers
nothing between two requests but open files and the endpoint table, which it asks for when it has
none, so killing it loses nothing.

    apply    conf                       the network, its peers, its rules
    attach   conf container ports       make the namespace NETNS_DIR/<container>, then ADD
    detach   conf container             DEL, then remove the namespace
    check    conf container
    status   conf
    collect  conf valid                 remove all attachments and namespaces but these containers'
    remove   conf                       the network, and everything attached to it
    balance  table                      VIPs, published ports and policies; see `endpoints`
    connections                         how many the kernel tracks, and of how many at most
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import attachment, conntrack, endpoints, namespaces, overlay
from .attachment import Attachment, Host
from .balancer import Balancer
from .config import IDENTIFIER, VERSION, NetConf, parse, port_mappings
from .errors import CniError, Code
from .plugin import failure

IFNAME = "eth0"


@dataclass(frozen=True, slots=True)
class Desk:
    """What requests are served with."""

    host: Host
    namespaces: Path
    balancer: Balancer = field(default_factory=Balancer)

    def target(self, request: Mapping[str, Any]) -> Attachment:
        """The attachment that a request is about."""
        container = str(request.get("container", ""))
        if not IDENTIFIER.fullmatch(container):
            raise CniError(Code.INVALID_CONFIG, f"container id {container!r} is not a name")
        return Attachment(container, IFNAME, str(self.namespaces / container))


def _apply(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    attachment.apply(desk.host, conf)


def _attach(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> dict[str, Any]:
    target = desk.target(request)
    made = namespaces.ensure(Path(target.netns))
    try:
        ports = port_mappings(request.get("ports"))
        return attachment.add(desk.host, replace(conf, ports=ports), target)
    except BaseException:
        if made:
            namespaces.remove(Path(target.netns))
        raise


def _detach(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    attachment.retire(desk.host, conf, desk.target(request))


def _check(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    attachment.check(desk.host, conf, desk.target(request))


def _status(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    attachment.status(desk.host, conf)


def _collect(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    valid = set(request.get("valid", ()))
    attachment.collect(desk.host, conf, {(container, IFNAME) for container in valid})
    for path in sorted(desk.namespaces.glob("*")):
        if path.name not in valid:
            namespaces.remove(path)
    attachment.restore_ports(desk.host)


def _remove(desk: Desk, conf: NetConf, request: Mapping[str, Any]) -> None:
    attachment.collect(desk.host, conf, ())
    overlay.remove(desk.host.sock, desk.host.nft, conf, last=not desk.host.ipam.leases())


Service = Callable[[Desk, Mapping[str, Any]], dict[str, Any] | None]
Operation = Callable[[Desk, NetConf, Mapping[str, Any]], dict[str, Any] | None]

OPERATIONS: dict[str, Operation] = {
    "apply": _apply,
    "attach": _attach,
    "detach": _detach,
    "check": _check,
    "status": _status,
    "collect": _collect,
    "remove": _remove,
}


def _balance(desk: Desk, request: Mapping[str, Any]) -> None:
    desk.balancer.apply(desk.host.sock, desk.host.nft, endpoints.parse(request["table"]))


def _connections(desk: Desk, request: Mapping[str, Any]) -> dict[str, Any]:
    return asdict(conntrack.usage())


# These are about all networks.
GENERAL: dict[str, Service] = {
    "balance": _balance,
    "connections": _connections,
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
    state_dir, netns_dir = Path(sys.argv[1]), Path(sys.argv[2])
    with Host(state_dir) as host:
        desk = Desk(host, netns_dir)
        for line in sys.stdin.buffer:
            sys.stdout.write(json.dumps(answer(desk, line)) + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
