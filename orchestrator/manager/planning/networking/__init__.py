# SPDX-License-Identifier: Apache-2.0
"""Networking: which addresses belong to which node, service and task.

Subnets and VNIs of new networks, slices of nodes, VIPs, fixed addresses, and the table of
endpoints that every node gets. Not here: which nodes can have a network
(`scheduling.network_filters`), and what nodes configure (`orchestrator.cni`).
"""
