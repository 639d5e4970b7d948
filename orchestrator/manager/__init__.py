# SPDX-License-Identifier: Apache-2.0
"""The manager: stores the cluster's state in etcd, plans, and dispatches work to nodes.

The store is the only bus. An operation of the API or an agent's report becomes a guarded
transaction; its change returns through the watch into the cache. The leader's planning loop reads
the cache, calls the pure functions of `planning`, and commits the result in transactions fenced by
the leader's key. The dispatcher compares what each agent was sent with the cache and sends the
difference.

    api, web ─▶ operations ─ txn ─▶ store ── watch ─▶ cache ─▶ leader: planning loop ─ txn ─▶ store
                                                         │               ▲
                                                         ▼               │ reports
                                                     dispatch ◀─ session ┘

Any manager serves the API and agents' sessions; only the elected leader plans. A term is one task
group: when the lease is lost or anything inside crashes, all of it is cancelled.

Packages: `api` (gRPC front end), `web` (HTTPS front end), `operations` (what front ends call),
`leader`, `planning`, `dispatch`, `store`, `security`, `audit`, `telemetry`, `diagnostics`.
`daemon` wires them together, `command` is `orc manager`.
"""
