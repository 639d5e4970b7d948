"""The manager's store: everything that was acknowledged, behind one small protocol.

**One bus.** Parts of the manager never call each other. They read a snapshot of what is stored,
decide, and write; everybody else learns of it from the store. So what survives a crash is what
there is, and a second manager sees what the first one did without being told.

**`kv` is the contract**: etcd's revisions, guarded transactions, leases, and watches that resume.
No more than that, so that a fake is honest: `memory` passes the same suite as `etcd` and runs
under the simulator, on a clock that the test moves.

**`etcd` is the real thing.** Three properties are made here, since the wire does not give them:

- *A watch has no gaps, doubles or halves.* It remembers the first revision it has not had, starts
  there again after any failure, and hands out all changes of one revision at once. Once a second
  it asks the member how far it is: the answer shows that the member lives and has a leader, and
  moves the place of a quiet watch forward, so that compaction behind it never ends it.
- *A failed write says what it means.* If it certainly did not happen it is repeated at the next
  endpoint. If nobody can know, `StoreUnavailable` says so. What the API writes is guarded by
  revisions and names, so doing it twice is a `Conflict`, not a double; what a leader writes stands
  in a sequence, by which it can tell (`writer`).
- *Nothing hangs.* Every attempt has a deadline. A frozen or cut-off member, whose TCP connection
  looks well, costs one deadline, then all calls move to the next endpoint (`etcdchannel`).

**`member`** is the etcd that a manager runs where none is given: on loopback, with a CA of its own
(`etcdtls`), restarted when it dies, left alone when the manager dies, found and adopted by the
next one (`etcdprocess`).
A cluster of one machine and one of three have the same store, so they have the same failures.

**`election`** decides who plans. A term is a lease and a key; the key's create revision is the
fencing token that every write of the leader carries. The leader also stops by its own clock
before the lease can end, so two leaders never both believe in themselves for long, and if they
did, only one could write.

**`cache`** is the store's content as objects, kept by one writer from a list and a watch;
**`commit`** encodes changes as guarded operations and writes what one call of the API wants;
**`parts`** splits a leader's round into what may fail by itself, and **`writer`** writes it in
transactions of a size that etcd takes.
"""
