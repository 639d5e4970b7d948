# SPDX-License-Identifier: Apache-2.0
"""Docker's Engine API in front of a cluster: `orc docker-api`.

A gateway translates requests of Docker's clients (the docker CLI, compose, SDKs) to calls of a
manager, and its answers to Docker's documents. It is a client like `orc` and has the rights of its
context. It keeps no state that an answer depends on, so several gateways can serve side by side.

`http` is the protocol, `containers`, `swarm` and the modules beside them are the endpoints. Source:
the Engine API 1.45 as published by Docker (api/swagger.yaml), and what dockerd does.
"""
