# SPDX-License-Identifier: Apache-2.0
"""The dev cluster: real hosts out of namespaces, on one machine.

`orc dev up` is the quickest way to have a cluster, the demo, and the place where the end-to-end
tests run. It must therefore behave as real hosts do, and no code in `manager`, `agent` or `cni`
knows that it runs there: this package only calls the `orc` command, as an administrator would.

A *host* is a PID, mount, network, UTS and IPC namespace around an init (`hostinit`), with its own
hostname, boot id, `/proc` and `/run`, and a folder on the disk that survives its reboots. The init
is PID 1, so that killing it is what a power loss is: every process of the host ends at once, and
its mounts and its network go with it. It plays systemd, too: it starts a daemon again that died.

The *underlay* (`underlay.py`) is a switch: a network namespace with one bridge, to which each host
and the machine itself have a cable (a veth pair). The bridge is not in the machine's own
namespace, since there a firewall of the machine (Docker's, say, which drops what it forwards)
would see the frames between hosts; so nothing of the machine needs to be altered, and nothing
restored. The machine has the first address of the subnet, and so `orc` reaches the managers. A
partition is a table of nftables inside the hosts that are cut off.

Everything can be found again by name, and `down` trusts no record that a crash could make wrong:

    /var/lib/orc-dev/NAME/cluster.json     what the cluster is: subnet, number of hosts
    /var/lib/orc-dev/NAME/tag              TAG, below
    /var/lib/orc-dev/NAME/HOST/lock        held by the host's init as long as it lives
    /var/lib/orc-dev/NAME/HOST/init.sock   takes the init's orders
    /var/lib/orc-dev/NAME/HOST/data        --data-dir of the host's daemon
    /var/lib/orc-dev/NAME/HOST/log         a file per daemon
    /var/lib/orc-dev/NAME/HOST/partition   addresses that a partitioned host still reaches
    network namespace orcdev-NAME          the switch, with a port per host, named like it
    link orcdev-TAG                        the machine's end of its cable
    cgroup /orc-NAME-HOST-TAG              parent of the host's containers, in every hierarchy

TAG is random: containers and chroots may share the machine's network and cgroups and have clusters
of the same name.

Modules: `plan` (names and addresses, pure), `underlay`, `cgroups`, `init`, `host` (one host's
power, daemons and namespaces), `cluster` (all of them, and the order of things), `command` (what
a user types).
"""
