# SPDX-License-Identifier: Apache-2.0
"""What separates a container from its node: root file systems, user ids, namespaces.

Here the kernel objects are made that the OCI runtime then joins. Which privileges a container
gets is decided in `spec`.
"""
