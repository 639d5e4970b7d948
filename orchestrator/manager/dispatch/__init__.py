# SPDX-License-Identifier: Apache-2.0
"""The manager's side of agent sessions: assignments, endpoints, secrets, tunnels, image pulls.

`dispatcher` serves the sessions, `session_records` tells the other managers of them,
`node_session` computes what one node is yet to be sent. What
nodes report goes to `leader.agent_reports`; what users request of nodes comes from `operations`.
"""
