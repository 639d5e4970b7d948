"""The manager: keeps the cluster's state in etcd, decides, and tells the nodes.

The store is the only bus. An API call or an agent's report becomes a guarded transaction; its
change comes back by the watch into the cache; the leader's loop (`term`) reads the cache, calls
the pure functions of `planning`, and writes what they want in one transaction fenced by the
leader's key; the dispatcher compares what each agent was sent (`nodesession`) with the
cache and sends the rest.

    api ── txn ──▶ store ── watch ──▶ cache ──▶ term: ingest · expire · plan ── txn ──▶ store
                                        │                  ▲
                                        ▼                  │ reports
                                    dispatcher ◀─ session ─ inbox

Any manager serves the API; only the elected one plans and has the agents' sessions. A term is one
task group: lose the lease, or crash anywhere inside, and all of it is cancelled together.

`daemon` wires the parts, `joining` is the port for hosts without a certificate, `tunnels` carry
logs and builds between a client and a node, `lookup` finds what a user means by a word.
"""
