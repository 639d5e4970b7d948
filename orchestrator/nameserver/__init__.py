# SPDX-License-Identifier: Apache-2.0
"""The DNS server of a node: resolves services' and containers' names for its containers.

One process a node (`python -m orchestrator.nameserver SOCKET`), started by the agent, which it
outlives. It listens on the gateway's address of each of the node's networks, port 53, UDP and TCP;
containers have it in resolv.conf. A container can resolve names of its own networks only; other
queries are forwarded to the host's name servers.

Names, in each network
    web                 the service's VIP, or its ready tasks if it has none; or a container
    tasks.web           all ready tasks of a service
    3.web, web.3        the task in slot 3; `web.3` is the container's name
    alias               a service's or container's `--network-alias`, like the name
    TASK-ID             a task by its id, in full (its hostname) or the first 12 characters
    _80._tcp.web        SRV: a published port, by the published or the container's port
    2.0.128.10.in-addr.arpa   PTR, of VIPs and tasks

Only ready tasks have names. Answers have a TTL of one second, which bounds the age of cached ones.

Existing servers do not fit. aardvark-dns reads a file for each network, again in full after each
change; it supports neither SRV nor an order of networks. unbound can change data at run time, but
access of clients is configuration that needs a reload, and here it changes with each container.
This server is small and fast since answers are cached by the bytes of their question: an answer is
one look-up and two system calls. Measured alternately on one core of a busy machine with dnsperf
(`make bench`), 10,000 tasks: aardvark-dns 36,000 answers a second, unbound 45,000, this one 39,000.

`dnswire` is the wire format, `zones` the names of each network, `answers` the answer to a question
(all pure); `feed` parses the agent's updates, `upstream` forwards to the host's name servers,
`listeners` has the sockets. The package imports only the standard library and starts in 0.1 s.
"""
