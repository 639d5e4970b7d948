# SPDX-License-Identifier: Apache-2.0
"""The pure core: what the cluster should do next, decided from a snapshot.

Nothing here does input or output, reads a clock or draws a random number. Time and ids are
arguments; a view (`view.ClusterView`) goes in, plans (`plan.Plan`) come out, and the leader
commits them, guarded by the revisions of all that was read. The same input gives the same plan,
byte for byte: dictionaries are walked in sorted order and ties are broken by id. Tables,
properties and the simulator test it, and `orc plan` shows it (`dry_run`).

**One pass** (`pipeline.plan`): network slices for nodes and VIPs for services; then, for each
dirty service, its slots (`reconcile`); then a node for each pending task (`scheduling`), over
the cluster as it will be after these changes. So a new task is written once, already ASSIGNED,
or PENDING with the reason.

**Slots.** A service's tasks are grouped by slot: a replica's number, kept across replacements.
Four rules carry everything else:

* `desired_state` says how a slot continues once its task has ended. RUNNING: the task ended by
  itself, and the restart policy decides. SHUTDOWN: the manager stopped it (an update, a drained
  node), and the slot is refilled whatever the policy. REMOVE: the slot is removed.
* A slot never has two tasks that may run, except in an update that starts the new one first.
  Otherwise a replacement is created when the old task has ended.
* What works is stopped for other reasons than the service's own (a drain, a preemption) only as far
  as its disruption budget allows (`disruptions`).
* A delay is stored: `task.not_before` delays a restart, `task.attempt` counts failures in a row,
  and `requeue_at` says when to plan again. A new leader loses nothing.

**Standalone containers** are tasks without a service. They are not replaced but run again, on the
node that they keep for life: the clock of their states is the pair (run, state).

**Imports** point one way: `networking` and `reports` stand on the modules of this package;
`reconcile` on them and on `consumers`; `scheduling` on all of these; `pipeline` on everything.

Not here: reading the store, watching it, committing (`manager.store` and the leader), and what a
user's request changes (`manager.api`).
"""
