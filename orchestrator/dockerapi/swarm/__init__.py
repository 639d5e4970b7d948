# SPDX-License-Identifier: Apache-2.0
"""The Swarm half of Docker's API: services, tasks, nodes, secrets, configs and the cluster."""
