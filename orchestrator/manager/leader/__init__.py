# SPDX-License-Identifier: Apache-2.0
"""What only the elected manager does: election, the planning loop, agent reports, plan commits.

`election` decides who leads; a term is a lease and a key whose create revision is the fencing
token. `planning_loop` reads the cache and the agents' reports, calls `planning`, and has
`plan_commit` write the result in fenced transactions. Decisions themselves are pure and belong in
`planning`.
"""
