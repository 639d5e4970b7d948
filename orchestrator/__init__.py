# SPDX-License-Identifier: Apache-2.0
"""Orc: a multi-host container orchestrator.

Packages, by noun: `model` (what things are), `manager` (decides and keeps state), `agent` (one
node: runs containers), `cni` (how a container is connected), `nameserver` (answers names), `cli`
(the `orc` command), `compose` (compose files, as specs), `web` (the HTTPS server of metrics and the
web page), `dev` (a cluster of namespace hosts on one machine), `identity` (certificates,
tokens, roles). Imports point one way: cli → model; manager, agent → model; never manager ↔ agent;
`cni` and `nameserver` import none of them.
"""

import os

__version__ = "0.2.0.dev0"
"""The only place that says it: package metadata and Debian packages read it here."""

# gRPC's core reads these when it is imported, so they are set before anything of ours can be.
# Its Python API cannot set a lowest TLS version; all keys of a cluster are ECDSA, so with this
# suite alone TLS 1.2 finds none in common, and TLS 1.3, whose suites are set apart, is left.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES256-GCM-SHA384")
# A fork in a daemon full of gRPC's threads only ever leads to exec.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
