# SPDX-License-Identifier: Apache-2.0
"""Registries, through skopeo: what managers and agents both need of them.

skopeo is the ecosystem's own client, so registries.conf, certs.d, policy.json, credential helpers
and auth.json of the host that runs it mean what they mean to Podman.
"""
