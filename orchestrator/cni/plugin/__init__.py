# SPDX-License-Identifier: Apache-2.0
"""`orc-cni`, as container runtimes execute it (CNI 1.1).

The protocol of environment variables, stdin and exit statuses, a thin client that starts fast, and
the warm server behind it. What an operation does to the kernel is in `attachments`.
"""
