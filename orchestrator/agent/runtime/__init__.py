"""How a container runs: an OCI bundle from a pure function, crun to make it, conmon to mind it.

**Containers outlive everything.** For each container there is one conmon: a small C program that
is the parent of the container's first process, holds its output, writes its log, and when it ends
writes the exit status to a file. conmon detaches from the agent at once, so that the agent may be
killed, upgraded or restarted at any time (a service manager must be told to kill the agent alone:
systemd's `KillMode=process`). An agent that comes back
finds the conmons by files, checks that each pid still is the process it was (pid and start time in
the same boot, `identity`), and watches it through a pidfd, as the first agent did. No container is
restarted, no exit status is lost.

**Files are the state.** Each container has two folders with its id as name:

    RUN/containers/ID/    on tmpfs, so that a reboot forgets it: the OCI bundle (`config.json`,
                          `rootfs`, the mount point), conmon's files (`pid`, `conmon.pid`, `ctl`,
                          `attach`, `exit`, `oom`) and ours (`identity`, `started`, `limits`,
                          `result`)
    STATE/ID/             on disk: `upper` and `work` of the overlay, `log` and older ones beside
                          it, and the `hosts`, `hostname` and `resolv.conf` that are mounted in

`RUN/crun` is the root of the OCI runtime's own records, and `CGROUP_PARENT/ID` the cgroup. A file
that matters is written whole or not at all, in the order of the steps; what an agent that was
killed between two steps leaves behind is listed by `list`, judged by `adopt`, and taken away by
`remove`, which looks at what is there and not at what should be.

**Decide in a pure function.** `oci` turns a container and the facts of the node into the runtime
configuration: Docker's default capabilities, a seccomp profile like Docker's (`seccomp`), masked
paths, no new privileges, namespaces, limits. It reads no file; the few things that are in the image
(`/etc/passwd`, the program's header) are read by `rootfs` in a way that no symbolic link in the
image leads out of it.

Devices of vendors come from files of the Container Device Interface (`cdi`). Limits change while a
container runs, all or none (`resizing`).

**Root in a container is nobody elsewhere.** Each container holds a range of user ids of the host
(`idranges`) and has a user namespace of it, to which its network namespace belongs: both are made
by a helper (`nsmaker`) before the network attaches, so that its root may listen on port 80, ping,
and with NET_ADMIN do more. Layers, writable layer, volumes and folders of the node are idmapped
mounts (`idmap`): on disk files have the owners that the container sees, layers stay shared, and a
kept writable layer or a volume is right in whatever range it is next used. `--userns host`,
`--privileged` and `--rootfs host` have the host's users. Neither AppArmor nor SELinux is used.

**Everything in a container ends with it.** Each container has a PID namespace, whose first process
takes all others with it, and a cgroup, through which what is left is found. SIGKILL goes to both.

**Fast.** Making and starting a container is one mount call, a few small files and three execs
(conmon, `crun create`, `crun start`). What a quick system call does is done at once, and not in a
thread; state that a file tells is not asked of crun; the seccomp profile, the biggest part of the
configuration, is turned into JSON once.

**cgroups.** Version 2, version 1 and both at once (`hybrid`) are told apart by `cgroups`. crun
refuses hybrid hosts, so `mountns.enter_private_mounts` hides the version 2 part from the agent and
its children before anything else starts.

`fake` is a scripted runtime for tests of the agent; it passes the same contract suite.
"""
