# SPDX-License-Identifier: Apache-2.0
"""Container networking: a CNI 1.1 plugin, and the overlay network between hosts.

Every node owns one subnet of each network. On the node a bridge joins its containers; between
nodes runs VXLAN, *routed*: the overlay never floods, never learns, and no broadcast domain spans
two hosts. A peer node takes three static entries, whatever the number of its containers:

    route      10.128.3.0/24 via 10.128.3.0 dev orcvx1 onlink src 10.128.0.1
    neighbour  10.128.3.0 is at 02:76:0a:80:03:00, permanent
    fdb        02:76:0a:80:03:00 is behind 192.0.2.13

Both the VTEP's address (the network address of the subnet) and its MAC derive from the subnet, so
other nodes need only (subnet, host address), and recreating a device does not invalidate their
entries. IPv6 adds one route and one neighbour, with the same MAC. A container with a fixed address
from another node's subnet adds one host route.

Packages, each of which imports only those below it
    `plugin`      the command `orc-cni`: protocol, thin client, warm server
    `helper`      the same operations over a pipe, for the agent
    `attachments` ADD, DEL, CHECK, STATUS, GC; leases; comparison with the kernel
    `balancing`   the endpoint table and its nftables rules: VIPs, published ports, policies
    `overlay`     bridge, veth pairs, VXLAN, peers, WireGuard tunnels: create, compare, repair
    `firewall`    our nftables tables: isolation, masquerading, published ports, anti-spoofing
    `netlink`     links, addresses, routes, rules, neighbours, WireGuard, namespaces, conntrack

    `netconf`     a network configuration, parsed and validated (pure); `jsonfields` its fields
    `peers`       desired entries of an overlay and their difference to the kernel's (pure)
    `fastrecord`  frozen dataclasses that are fast to import
    `errors`      errors as CNI defines them

Two front ends
    Another container runtime executes `orc-cni` once per operation. The agent keeps one
    `helper` process instead and sends it a line of JSON per operation, since starting Python takes
    longer than connecting a container. Both are synchronous and single-threaded: setns(2) changes
    the calling thread only, which does not go with an event loop or a thread pool.

Use of pyroute2
    pyroute2's message classes encode requests that create devices, WireGuard tunnels, routing rules
    and their tables; only `netlink.messages` imports them. Messages that connect a container, and
    those read at every pass over a thousand peers, are encoded and decoded in `netlink.links` and
    `netlink.routing`, for the reasons measured there. One blocking socket sends all of them, in
    batches: rtnetlink(7), include/uapi/linux.

Crash recovery
    Names derive from identities (`orcv` + a hash of the attachment for a veth, the container's id
    for a namespace). An address is recorded before the kernel is changed and released after it was
    cleaned up. So all that a kill -9 leaves is found by name and removed by `attachment.collect`.

This package imports nothing of Orc but `linux`, and starts without gRPC or click.
"""
