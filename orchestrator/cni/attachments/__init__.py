# SPDX-License-Identifier: Apache-2.0
"""The attachments of containers to networks: CNI's ADD, DEL, CHECK, STATUS and GC.

The order of an operation's steps, the addresses and leases of this host, the results, and the
comparison with the kernel. Devices, routes and rules are created by `overlay` and `firewall`.
"""
