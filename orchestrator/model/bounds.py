# SPDX-License-Identifier: Apache-2.0
"""Bounds of what a cluster takes. Imports nothing, for short commands."""

MAX_REPLICAS = 100_000
"""Maximum number of tasks of one service."""
