# SPDX-License-Identifier: Apache-2.0
"""The leader's work, and what feeds it: election, the planning loop, agent reports, plan commits.

`election` decides who leads; a term is a lease and a key whose create revision is the fencing
token. `planning_loop` reads the cache and the agents' reports, calls `planning`, and has
`plan_commit` write the result in fenced transactions. A manager that does not lead commits the
reports of its sessions by `report_commit`. `autoscaler` measures tasks and sets numbers of
replicas. Decisions themselves are pure and belong in
`planning`.
"""
