"""One node: runs the containers that a manager has assigned to it.

The agent opens no control port. It dials a manager, keeps one session (`session`, `dialer`), gets
the set of tasks that this node must run, and reports what became of them. Logs, loads and builds
travel over further streams that it opens as well (`tunnels`).

The way of an order: `session` checks that it chains to the last one, `worker` writes it to the
state file (`statedb`) and only then acts: each task has a runner (`runner`), one asyncio task that
asks a pure function what to do next (`lifecycle`) and does it with the parts: images, volumes,
network, runtime (`holding`: what one task has of them). What it observes is written down
(`account`) and goes to the `reporter`, which sends the newest status of each task until a manager
has acknowledged it.

**Containers outlive everything.** Their parent is conmon, not the agent. SIGTERM ends the agent
and leaves them running; kill -9 at any instant does too. The next agent reads the state file and
adopts: what runs, runs on under the same task id; what ended meanwhile is reported with its exit
status; what cannot be found has failed. It is not run again here, since its work may have moved
elsewhere; only after a reboot, when nothing of this node can still run, does what ran start again.
While no manager answers, everything runs on and nobody decides anything.

**Nothing leaks.** Every part removes by name and is asked again until it succeeds: a task's row
leaves the state file only when its container, mounts, address and ports are gone. What no row knows
is removed once a manager has sent the full set.

**The endpoint table** tells where everything of the cluster can be reached (`endpoints`). It is
written down as well, and followed by the kernel's balance (`balancing`) and by the name server
(`names`), a process of its own that goes on while there is no agent. What they follow is
acknowledged: a task is told to stop once no node leads to it any more.

**One process, one loop.** The daemon (`daemon`) is one TaskGroup. What blocks (netlink, unpacking,
building) is done by child processes or threads. An error of one task ends that task; a bug in one
of the loops ends the daemon, visibly, and its supervisor starts it again: the containers do not
notice.

The core imports no NumPy, no netlink, no rich: an idle agent is small.
"""
