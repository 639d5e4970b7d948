# SPDX-License-Identifier: Apache-2.0
"""The managers of a cluster: who they are, how one joins and leaves, and calls among them.

`registration` keeps a manager's own object and presence key; `enrolment` serves a joining manager
and promotes its etcd member; `quorum` says which removals are safe (pure); `manager_calls` connects
to other managers. The etcd side is in `store.etcd_member` and `store.etcd_membership`. What an
operator requests (`orc manager ls`, `rm`) is in `operations.administration.managers`.
"""
