# SPDX-License-Identifier: Apache-2.0
"""The manager's store: everything that was acknowledged, behind one small protocol.

**One bus.** Components of the manager do not call each other. They read a snapshot of the store,
decide, and write; all others learn of it from the store. So the store holds all that survives a
crash, and a second manager sees what the first one did.

**`kv` is the contract**: etcd's revisions, guarded transactions, leases, and watches that resume;
no more than that, so that a fake can be faithful. `memory` passes the same test suite as `etcd` and
runs in the simulator, on a clock that the test moves.

**`etcd` is the real implementation.** It adds three properties that the protocol of etcd does not
give. *Watches are complete*: a watch remembers the first revision that it has not received, resumes
there after any failure, and delivers all changes of one revision at once. Once a second it requests
progress: the answer shows that the member is alive and has a leader, and advances an idle watch, so
that compaction never overtakes it. *Failed writes have a known meaning*: a write that certainly did
not happen is repeated at the next endpoint; for an unknown outcome `StoreUnavailable` is raised.
The API's writes are guarded by revisions and names, so a repeated one is a `Conflict`, not a
duplicate; the leader's writes form a sequence (`leader.plan_commit`). *Nothing hangs*: every
attempt has a deadline. A frozen or partitioned member, whose TCP connection looks healthy, costs
one deadline, then all calls move to the next endpoint (`etcd_channels`).

**`etcd_member`** is the etcd that a manager runs if no endpoints are given: on loopback, with a CA
of its own (`etcd_tls`), restarted when it dies, left running when the manager dies, found and
adopted by the next manager (`etcd_process`).

**`cache`** holds the store's content as objects, updated by one writer from a list and a watch;
**`commit`** encodes changes as guarded operations and commits the changes of API operations.
"""
