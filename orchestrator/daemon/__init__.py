# SPDX-License-Identifier: Apache-2.0
"""Infrastructure of daemons, shared by managers and agents.

Process life cycle, systemd, logging, configuration files, proxies, background tasks. Nothing here
depends on the work of a manager or an agent.
"""
