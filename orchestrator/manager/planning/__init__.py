"""The pure core: what the cluster should do next, decided from a snapshot.

Nothing here does input or output, reads a clock, draws a random number or logs. Time and ids are
arguments; a view (`views.ClusterView`) goes in, plans (`plan.Plan`) come out, and the manager's
shell writes them, guarded by the revisions of all that was read. The same input gives the same
plan, byte for byte: dictionaries are walked in sorted order and every tie is broken by id. That
is what lets a table, a property and a simulator test it, and what lets a user be shown what
would happen.

**One pass** (`pipeline.plan`): network slices for the nodes; then, for each service that
something happened to, what its tasks should be; then a node for every task that waits, over the
cluster as it will be after these changes. So a new task is written once, already assigned, or
PENDING with the reason why it waits.

**Slots.** A service's tasks are grouped by slot: a replica's number, kept across replacements.
Three rules carry everything else:

* `desired_state` tells what becomes of the slot once its task has ended. RUNNING: the task ended
  by itself, and the restart policy decides. SHUTDOWN: the manager stopped it (an update, a
  drained node), and the slot is filled anew whatever the policy. REMOVE: the slot is given up.
* A slot never has two tasks that may run, but in an update that starts the new one first
  (`update`). Else a replacement is created when the old task has ended.
* A delay is stored: `task.not_before` holds a restart back, `task.attempt` counts the failures
  in a row, and `requeue_at` says when to look again. A new leader loses nothing.

**Liveness.** The shell knows when it last heard of each node. `liveness` turns silence into a
node that is DOWN; the reconciler gives its tasks up (ORPHANED) and fills their slots elsewhere.
An ORPHANED task is not among the `assignments` of its node, so that a node that comes back
stops it.

**Containers of their own** are tasks without a service (`standalone`). They are not replaced but
run again, on the node that they have for life: the clock of their states is the pair (run, state).

Files: `plan` and `views` are the contract with the shell. `pipeline` is the pass; `replicated`
and `global_` say which slots there should be, `jobs`, `jobruns` and `jobschedule` the same of
work that ends, `slots`, `restart`, `update`, `removal` and
`reaper` what happens inside one; `scheduler`, `filters`, `constraints` and `resources` choose
nodes; `allocator` cuts networks into slices; `statuses` takes in what agents report;
`dependencies` holds back what waits for other services; `accounting` and `progress` answer what
listings and waiting commands ask.
"""
