# SPDX-License-Identifier: Apache-2.0
"""Running containers: an OCI bundle from pure functions, crun to create it, conmon to monitor it.

Packages: `spec` decides the OCI configuration, `isolation` makes root file systems and namespaces,
`resources` limits and measures, `engine` drives crun and conmon, `io` attaches, executes and reads
logs. `interface` is what the rest of the agent uses; `fake` is a scripted runtime for tests, which
passes the same contract suite.

**Containers outlive everything.** Each container has a conmon: a small C program that is the
parent of the container's first process, reads its output, writes its log, and writes the exit
status to a file at the end. conmon detaches from the agent at once, so the agent may be killed,
upgraded or restarted at any time (systemd's `KillMode=process`: a service manager must kill the
agent alone). A restarted agent finds the conmons by files, verifies that each pid is still the same
process (pid and start time in the same boot, `linux.processes`), and watches it through a pidfd. No
container is restarted, no exit status is lost.

**Files are the state.** Each container has two folders with its id as name:

    RUN/containers/ID/    on tmpfs, so that it ends with the boot: the OCI bundle (`config.json`,
                          `rootfs`, the mount point), conmon's files (`pid`, `conmon.pid`, `ctl`,
                          `attach`, `exit`, `oom`) and ours (`identity`, `started`, `limits`,
                          `result`)
    STATE/ID/             on disk: `upper` and `work` of the overlay, `log` and its rotated files,
                          and the `hosts`, `hostname` and `resolv.conf` that are mounted in

`RUN/crun` is the root of the OCI runtime's own records, and `CGROUP_PARENT/ID` the cgroup. Records
are written atomically, in the order of the steps. What a killed agent leaves between two steps is
listed by `list`, classified by `adopt` and deleted by `remove`, which inspects the host and does
not rely on records.

**Decide in pure functions.** `spec.oci` turns a container and the facts of the node into the
runtime configuration: Docker's default capabilities, a seccomp profile like Docker's, masked paths,
no new privileges, namespaces, limits. It reads no file. The few files that are read from an image
(`/etc/passwd`, the program's header) are opened so that no symbolic link leads out of it
(`linux.openat`). Vendors' devices come from files of the Container Device Interface (`spec.cdi`).
Limits can change while a container runs, all or none (`resources.resizing`).

**Root in a container is unprivileged on the host.** Each container holds a range of host user ids
(`isolation.idranges`) and has a user namespace with that range, which owns its network namespace.
A helper (`isolation.nsmaker`) makes both before the network attaches, so that the container's root
may listen on port 80, ping, and with NET_ADMIN configure its network. Layers, the writable layer,
volumes and bind mounts are idmapped mounts: on disk, files have the owners that the container sees,
layers stay shared, and a kept writable layer or a volume works with any later range.
`--userns host`, `--privileged` and `--rootfs host` use the host's users. AppArmor applies where the
kernel has it; SELinux is not used.

**Everything in a container ends with it.** Each container has a PID namespace, which ends with its
first process, and a cgroup, by which remaining processes are found. SIGKILL goes to both.

**Fast.** Creating and starting a container takes one mount call, a few small files and three execs
(conmon, `crun create`, `crun start`). Quick system calls run on the event loop, not in a thread;
state that is in a file is not queried from crun; the seccomp profile, the largest part of the
configuration, is rendered to JSON once.

**cgroups.** `resources.cgroups` distinguishes version 2, version 1 and both (`hybrid`). crun
refuses hybrid hosts, so `isolation.mountns.enter_private_mounts` hides the version 2 tree from the
agent and its children before anything else starts.
"""
