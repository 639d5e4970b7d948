# SPDX-License-Identifier: Apache-2.0
"""How a container is connected: a CNI 1.1 plugin, and the overlay between the hosts.

Every node owns one subnet of each network. On the node a bridge joins its containers; between
nodes runs VXLAN, *routed*: the overlay never floods, never learns, and no broadcast domain spans
two hosts. A peer node costs three static entries, however many containers it runs:

    route      10.128.3.0/24 via 10.128.3.0 dev orcvx1 onlink src 10.128.0.1
    neighbour  10.128.3.0 is at 02:76:0a:80:03:00, permanent
    fdb        02:76:0a:80:03:00 is behind 192.0.2.13

Both the VTEP's address (the network address of the subnet) and its MAC derive from the subnet, so
other nodes need nothing but (subnet, host address), and re-creating a device does not invalidate
their entries. With IPv6 it is one route and one neighbour more, to the same MAC. A container with a
fixed address out of another node's subnet costs one host route more.

Packages, each of which imports only those below it
    `plugin`      the command `orc-cni`: protocol, thin client, warm server
    `helper`      the same operations over a pipe, for the agent
    `attachments` ADD, DEL, CHECK, STATUS, GC; leases; comparison with the kernel
    `balancing`   the endpoint table, and the rules that follow from it: VIPs, ports, policies
    `overlay`     bridge, veth pairs, VXLAN, peers, WireGuard tunnels: create, compare, repair
    `firewall`    our nftables tables: isolation, masquerading, published ports, anti-spoofing
    `netlink`     links, addresses, routes, rules, neighbours, WireGuard, namespaces, conntrack

    `netconf`     a network configuration, parsed and validated (pure); `jsonfields` its fields
    `peers`       desired entries of an overlay and their difference to the kernel's (pure)
    `fastrecord`  frozen dataclasses that cost nothing at import
    `errors`      errors as CNI defines them

Two ways in, one body
    Another container runtime executes `orc-cni` once per operation. The agent keeps one
    `helper` process instead and sends it a line of JSON per operation, since starting Python costs
    more than connecting a container. Both are plain, synchronous and single-threaded: entering a
    network namespace changes the calling thread only, which no event loop or thread pool survives
    in a predictable way.

pyroute2, and where not
    pyroute2's message classes encode what makes devices, WireGuard tunnels, routing rules and their
    tables; `netlink.messages` alone imports it. What connects a container, and what is read at
    every pass over a thousand peers, is encoded and read by hand in `netlink.links` and
    `netlink.routing`, for the reasons measured there. One blocking socket sends all of it, in
    batches: rtnetlink(7), include/uapi/linux.

Found again after any crash
    Names derive from identities (`orcv` + a hash of the attachment for a veth, the container's id
    for a namespace). An address is recorded before the kernel is changed and released after it was
    cleaned up. So whatever a kill -9 leaves is found by name and removed by `attachment.collect`.

This package imports nothing of Orc but `linux`, and starts without gRPC or click.
"""
