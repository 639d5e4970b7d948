# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime configuration (`config.json`) of a container.

Mostly pure functions from a container and the facts of its node to parts of the document:
process, mounts, files in /etc, capabilities, seccomp, devices. Kernel objects are made in
`isolation`, limits are computed in `resources`; nothing here starts a container.
"""
