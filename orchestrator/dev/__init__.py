# SPDX-License-Identifier: Apache-2.0
"""The dev cluster: hosts made of namespaces on one machine.

`orc dev up` is the quickest way to a cluster; demos and end-to-end tests use it. Its hosts behave
like real ones, and no code in `manager`, `agent` or `cni` knows that it runs there: this package
only calls the `orc` command, as an administrator would.

A *host* is a PID, mount, network, UTS and IPC namespace around an init (`hostinit`), with its own
hostname, boot id, `/proc` and `/run`, and a folder on disk that survives reboots. The init is PID
1, so killing it amounts to a power loss: all processes of the host end at once, and its mounts and
network disappear. Like systemd, it restarts daemons that die.

The *underlay* is a switch: a network namespace with one bridge, to which each host and the machine
itself are connected by a veth pair. The bridge is not in the machine's own namespace, where the
machine's firewall (such as Docker's, which drops forwarded frames) would filter frames between
hosts. So nothing on the machine has to be changed or restored. The machine has the first address of
the subnet, by which `orc` reaches the managers. A partition is an nftables table inside the
partitioned hosts.

Everything can be found by name, and `down` relies on no record that a crash could corrupt:

    /var/lib/orc-dev/NAME/cluster.json     the cluster's subnet and number of hosts
    /var/lib/orc-dev/NAME/tag              TAG, see below
    /var/lib/orc-dev/NAME/HOST/lock        locked by the host's init while it runs
    /var/lib/orc-dev/NAME/HOST/init.sock   the init's control socket
    /var/lib/orc-dev/NAME/HOST/data        --data-dir of the host's daemon
    /var/lib/orc-dev/NAME/HOST/log         a file per daemon
    /var/lib/orc-dev/NAME/HOST/partition   addresses that a partitioned host can reach
    network namespace orcdev-NAME          the switch, with a port per host, named after it
    link orcdev-TAG                        the machine's end of its veth pair
    cgroup /orc-NAME-HOST-TAG              parent of the host's containers, in every hierarchy

TAG is random: containers and chroots may share the machine's network and cgroups and have clusters
of the same name.

Modules: `devplan` (names and addresses, pure), `underlay` (the switch), `hostcgroups` (removal of
cgroups), `hostinit` (PID 1 of a host), `devhost` (one host: power, daemons, namespaces),
`devcluster` (all hosts, in order), `devcommands` (the command line).
"""
