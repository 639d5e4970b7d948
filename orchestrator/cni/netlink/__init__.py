# SPDX-License-Identifier: Apache-2.0
"""The kernel's network configuration, typed: links, addresses, routes, rules, neighbours, FDB.

Also WireGuard, network namespaces and connection tracking. Nothing here knows a network of Orc or
decides anything.
"""
