"""Whether an attachment is as ADD left it (CHECK), and whether ADD would work (STATUS)."""

from __future__ import annotations

from orchestrator.cni import (
    attachment,
    cable,
    drift,
    namespaces,
    netlink,
    overlay,
    results,
    routing,
    vxlan,
)
from orchestrator.cni.attachment import Attachment, Host
from orchestrator.cni.cable import Cable
from orchestrator.cni.config import NetConf
from orchestrator.cni.errors import CniError, Code
from orchestrator.cni.results import Claims
from orchestrator.cni.rtnetlink import RouteSocket


def check(host: Host, conf: NetConf, target: Attachment) -> None:
    """Raise `CniError` CHECK_FAILED, with the reason, unless all is as ADD left it, in the kernel
    and in the result that the runtime kept of it."""
    laid, lease = attachment.cable_of(host, conf, target)
    with (
        namespaces.opened(target.netns) as namespace,
        namespaces.route_socket(namespace) as within,
    ):
        reason = ""
        if conf.previous is not None:
            reason = results.contradiction(
                conf.previous, laid, conf.bridge, lambda path: _leads(path, target, namespace)
            )
        reason = reason or cable.deviation(host.sock, within, conf.bridge, laid)
        if not reason and conf.previous is not None:
            reason = _missing(within, laid, results.claims(conf.previous, laid))
    reason = reason or next(drift.rules(host, conf), "") or attachment.unpublished(host, lease)
    if reason:
        raise CniError(Code.CHECK_FAILED, f"container {target.container_id}: {reason}")


def _leads(path: str, target: Attachment, namespace: int) -> bool:
    """Whether a path is of the container's namespace."""
    if path == target.netns:
        return True
    try:
        with namespaces.opened(path) as other:
            return namespaces.same(other, namespace)
    except CniError:
        return False


def _missing(within: RouteSocket, laid: Cable, claims: Claims) -> str:
    """What a result says that the container does not have, in words; empty if it has all."""
    inside = netlink.get_link(within, laid.ifname)
    index = inside.index if inside is not None else 0
    present = netlink.addresses(within, index)
    for address in claims.addresses:
        if (index, address) not in present:
            return f"prevResult has the address {address}, which {laid.ifname} does not have"
    ways = [way for link in netlink.links(within) for way in routing.routes(within, link.index)]
    for destination, gateway in claims.routes:
        if not any(
            way.destination == destination and gateway in (None, way.gateway) for way in ways
        ):
            by = f" by {gateway}" if gateway else ""
            return f"prevResult has a route to {destination}{by}, which the container does not have"
    return ""


def status(host: Host, conf: NetConf) -> None:
    """Raise `CniError` unless the network can take containers: NOT_AVAILABLE, or
    LIMITED_CONNECTIVITY where those that it has are cut off, too.

    A network that has no container yet needs nothing on this host: the first ADD sets it up.
    """
    if host.ipam.free(conf) <= 0:
        raise CniError(Code.NOT_AVAILABLE, f"all addresses of {conf.range} are in use")
    if conf.overlay is not None:
        try:
            under = vxlan.underlay(host.sock, conf.overlay.node)
        except CniError as error:
            raise CniError(Code.NOT_AVAILABLE, str(error)) from error
        if not under.up:
            raise CniError(
                Code.LIMITED_CONNECTIVITY,
                f"interface {under.name} is down: containers of other hosts cannot be reached",
            )
    if host.ipam.leases(conf.name) and (reason := _damage(host, conf)):
        raise CniError(
            Code.LIMITED_CONNECTIVITY,
            f"{reason}: containers of network {conf.name} have limited connectivity",
        )


def _damage(host: Host, conf: NetConf) -> str:
    """What of the network is gone that its containers need, in words; empty if nothing is."""
    if netlink.get_link(host.sock, conf.bridge) is None:
        return f"bridge {conf.bridge} is gone"
    if off := overlay.switched_off(conf):
        return f"net.{off[0].replace('/', '.')} is switched off"
    return next(drift.rules(host, conf), "")
