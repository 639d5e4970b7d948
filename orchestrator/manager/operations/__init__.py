# SPDX-License-Identifier: Apache-2.0
"""The service layer: every operation that a user can request of the cluster.

One class per noun, with plain async methods that take a request message and, where it matters, the
caller's identity. They validate, commit to the store or talk to nodes, and raise `RequestError`
with one line for the user. Front ends (`api` over gRPC, `web` over HTTPS, dry runs) call them;
nothing here knows about gRPC or HTTP. Reads come from the cache. A write is answered once this
manager's cache has it, so clients read their own writes.

`workloads`: services, jobs, containers, their logs and streams. `images`: images and registries.
`resources`: networks, volumes, secrets and configs. `administration`: cluster, nodes,
certificates, audit trail, web sessions. At the top: what several of them share.
"""
