# SPDX-License-Identifier: Apache-2.0
"""Input and output of containers: attach, exec, log files.

Streams to clients are in `agent.streams`, the shipping of logs in `agent.logs`.
"""
