# SPDX-License-Identifier: Apache-2.0
"""What containers may use and do use: cgroups, limits, statistics.

The OCI runtime makes a container's cgroup; finding, freezing, measuring, resizing and removing
it is done here. What the node as a whole has is measured in `agent`.
"""
