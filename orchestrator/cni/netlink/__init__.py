# SPDX-License-Identifier: Apache-2.0
"""The kernel's network configuration, typed: links, addresses, routes, rules, neighbours, FDB.

Also WireGuard, network namespaces and connection tracking. Nothing here depends on the networks of
Orc or makes decisions.
"""
