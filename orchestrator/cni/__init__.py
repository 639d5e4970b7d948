"""How a container is connected: a CNI 1.1 plugin, and the overlay between the hosts.

Every node owns one subnet of each network. On the node a bridge joins its containers; between
nodes runs VXLAN, *routed*: the overlay never floods, never learns, and no broadcast domain spans
two hosts. A peer node costs three static entries, however many containers it runs:

    route      10.128.3.0/24 via 10.128.3.0 dev orcvx1 onlink src 10.128.0.1
    neighbour  10.128.3.0 is at 02:76:0a:80:03:00, permanent
    fdb        02:76:0a:80:03:00 is behind 192.0.2.13

Both the VTEP's address (the network address of the subnet) and its MAC derive from the subnet, so
nothing but (subnet, host address) needs to be told to the other nodes, and re-creating a device
does not invalidate what they hold. With IPv6 it is a route and a neighbour more, to the same MAC.
A container with a fixed address of another node's part is a host route more.

What is pure, what acts
    `peers`       desired entries and their difference to what the kernel has (pure)
    `fields` `config`   a network configuration, parsed and validated (pure)
    `pool` `ipam`   the choice of an address (pure); what is given, in one SQLite file
    `rtnetlink`   the wire format and a blocking socket
    `netlink` `routing`   links and addresses; routes, neighbours, forwarding entries: typed
    `namespaces`  named network namespaces, made without fork
    `bridge` `cable` `vxlan` `overlay`   `ensure_*`: create, tolerate, compare, mend
    `records`     frozen dataclasses that take no time to make
    `genetlink` `wireguard`   generic netlink; WireGuard's devices and peers, typed
    `tunnels` `tunnel`   which tunnels of encrypted networks are used, by which keys (pure); in the
                  kernel. `sealed`: the rules that keep these networks in there (pure)
    `nft` `firewall` `portmap` `conntrack`   our table for networks: isolation, masquerade, ports
    `endpoints` `balance` `ingress` `policy` `ruleset`   the endpoint table and rules
                  that follow from it: VIPs, published ports, policies (pure)
    `balancer`    these rules in the kernel, changed by differences
    `attachment`  ADD, DEL, CHECK, STATUS, GC over all of these
    `plugin`      the command `orc-cni`;  `helper` the same functions, kept warm for the agent

Two ways in, one body
    Another container runtime executes `orc-cni` once per operation. The agent keeps one
    `helper` process instead and sends it a line of JSON per operation, since starting Python costs
    more than connecting a container. Both are plain, synchronous and single-threaded: entering a
    network namespace changes the calling thread only, which no event loop or thread pool survives
    in a predictable way.

Why rtnetlink is spoken directly
    The usual library costs 100 ms and 25 MB to import and about a millisecond a call, because it
    wraps an event loop. A container needs about ten messages, a network a thousand peers. Sent as
    batches of bytes they take the kernel's time only. The format is small, stable and documented
    (rtnetlink(7), include/uapi/linux).

Found again after any crash
    Names derive from identities (`orcv` + a hash of the attachment for a veth, the container's id
    for a namespace), an address is recorded before the kernel is touched and released after it was
    cleaned. So whatever a kill -9 leaves is found by name and removed by `attachment.collect`.

This package imports nothing else of Orc, and starts without gRPC or click.
"""
