# SPDX-License-Identifier: Apache-2.0
"""Images built from Dockerfiles on this node, by buildah.

A build runs in a user namespace and a control group of its own and takes its base images from the
store. Which node builds, and how a client follows it, is decided elsewhere.
"""
