# SPDX-License-Identifier: Apache-2.0
"""Images built from Dockerfiles on this node, by buildah.

A build runs in a separate user namespace and cgroup, and takes its base images from the store. The
node that builds is chosen by the manager.
"""
