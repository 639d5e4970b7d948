# SPDX-License-Identifier: Apache-2.0
"""A network on this host: bridge, veth pairs, VXLAN, its peers, WireGuard tunnels.

`ensure_*` functions compare desired state with the kernel and change what differs. Messages to
the kernel are in `netlink`, packet filters in `firewall`.
"""
