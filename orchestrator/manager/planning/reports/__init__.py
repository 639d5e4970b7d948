# SPDX-License-Identifier: Apache-2.0
"""Reports of agents, validated before they are stored: task statuses, descriptions, heartbeats.

A node may speak only about itself. Not here: receiving reports and writing them.
"""
