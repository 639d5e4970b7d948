# SPDX-License-Identifier: Apache-2.0
"""What managers and agents have in common as processes.

Start and end, systemd, log lines, configuration files, proxies, background tasks. Nothing here
knows what a manager or an agent does.
"""
