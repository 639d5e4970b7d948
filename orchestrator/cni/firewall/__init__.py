# SPDX-License-Identifier: Apache-2.0
"""Packet filters: isolation, masquerading, published ports of containers, anti-spoofing.

Also the binding to libnftables and the rule sets that `balancing` fills. Nothing here makes a
device or a route.
"""
