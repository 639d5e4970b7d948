# SPDX-License-Identifier: Apache-2.0
"""Resource limits and usage of containers: cgroups, limits, statistics.

The OCI runtime creates a container's cgroup; finding, freezing, measuring, resizing and removing
it is done here. The node's own resources are measured in `agent.telemetry`.
"""
