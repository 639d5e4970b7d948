# SPDX-License-Identifier: Apache-2.0
"""Load balancing: VIPs, published ports of services, ingress, network policies.

The endpoint table becomes nftables rules (pure); `balancer` applies the differences. Ports of a
single container are in `firewall.portmap`.
"""
