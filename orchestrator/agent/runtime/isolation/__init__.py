# SPDX-License-Identifier: Apache-2.0
"""Isolation of containers from their node: root file systems, user ids, namespaces.

This package creates the kernel objects that the OCI runtime then joins. The privileges of a
container are decided in `spec`.
"""
