# SPDX-License-Identifier: Apache-2.0
"""The agent: runs the containers that a manager assigns to this node.

The agent opens no control port. It dials a manager, keeps one session (`session`), receives the set
of tasks that this node must run, and reports their statuses. Logs, image uploads and builds travel
over further streams that it opens as well (`streams`).

Data flow: `session` checks that an assignment chains to the last one, `tasks.worker` writes it to
the state file (`statedb`) and only then acts. Each task has a runner (`tasks.runner`), one asyncio
task that gets the next step from a pure function (`tasks.lifecycle`) and performs it with the
task's resources (`tasks.task_resources`): images, volumes, network, runtime. Observed statuses are
recorded and go to `tasks.status_reporter`, which sends the newest of each task until a manager
acknowledges it.

**Containers outlive everything.** Their parent is conmon, not the agent. SIGTERM ends the agent
and leaves them running; so does kill -9 at any instant. The next agent reads the state file and
adopts: a running container keeps its task id; one that ended meanwhile is reported with its exit
status; one that cannot be found has failed. It is not started again here, since its work may have
moved elsewhere; only after a reboot, when nothing of this node can still run, is it started again.
While no manager responds, containers continue and the agent decides nothing.

**Nothing leaks.** Resources are removed by name, and removal is repeated until it succeeds: a
task's row leaves the state file only when its container, mounts, address and ports are released.
Containers without a row are removed once a manager has sent the full set.

**The endpoint table** has the addresses of every service of the cluster
(`network.endpoint_table`). It is recorded as well, and followed by the kernel's load balancer
(`network.load_balancer`) and by the name server (`network.name_server`), a separate process that
outlives the agent. The agent acknowledges the revision that they have applied: a task is stopped
only when no node routes to it any more.

**One process, one loop.** The daemon (`daemon`) is one TaskGroup. Blocking work (netlink,
unpacking, building) runs in child processes or threads. An error of one task ends that task; an
unexpected exception in a loop ends the daemon, and its supervisor restarts it. Containers are not
affected.

An idle agent is small: the core imports no NumPy, netlink or rich.
"""
