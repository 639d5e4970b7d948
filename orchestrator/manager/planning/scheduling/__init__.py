# SPDX-License-Identifier: Apache-2.0
"""Scheduling: which node each pending task gets, and why it gets none.

Filters say which nodes can take a task and name what is wrong with the others; scores rank those
that are left. Both are array operations over a `node_table.NodeTable`. On the same table,
`preemption` chooses tasks to be stopped for others, `rebalancing` moves that improve something,
`fair_shares` whose turn it is among job queues, and `explanation` answers `orc capacity` and `orc
why`. Not here: which tasks there should be (`reconcile`).
"""
