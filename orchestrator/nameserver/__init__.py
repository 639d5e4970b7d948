# SPDX-License-Identifier: Apache-2.0
"""The name server of a node: what a container gets when it asks for `web`.

One process a node (`python -m orchestrator.nameserver SOCKET`), started by the agent and not ended
with it. It listens on the gateway's address of each of the node's networks, port 53, UDP and TCP,
and the containers' resolv.conf names it. A container gets names of the networks that it is on,
and of no other; everything else is forwarded to the host's own name servers.

Names, in each network
    web                 the service's VIP, or its ready tasks if it has none; a container
    tasks.web           all ready tasks of a service
    3.web, web.3        the task in slot 3; `web.3` is the container's name
    alias               a service's or container's `--network-alias`: as the name itself
    TASK-ID             a task by its id, whole (its hostname) or the first 12 characters
    _80._tcp.web        SRV: a published port, by the published or the container's number
    2.0.128.10.in-addr.arpa   PTR, of VIPs and tasks

Only ready tasks have names. The TTL of answers is a second, so no cache is further behind than
that.

Why a server of our own. aardvark-dns answers names of containers out of a file a network, which it
reads again whole at a change; it knows no SRV and no order of networks. unbound can hold such data
and change it at run time, but which client sees what is configuration that it must be reloaded for,
and here that changes with each container. What is left to write is small since answers are made
once: an answer of this server is a look-up of the question's bytes and two system calls. Measured
by turns on one core of a busy machine with dnsperf (`make bench`), 10,000 tasks: aardvark-dns
36,000 answers a second, unbound 45,000, this one 39,000.

`dnswire` is the format of messages, `zones` the names of each network, `answers` the answer to a
question (all pure); `feed` parses what the agent sends, `upstream` asks the host's name servers,
`listeners` has the sockets. The package imports nothing but the standard library and starts in
0.1 s.
"""
