# SPDX-License-Identifier: Apache-2.0
"""Access to registries with skopeo, shared by managers and agents.

skopeo reads registries.conf, certs.d, policy.json, credential helpers and auth.json of its host, so
they apply to Orc as they do to Podman.
"""
