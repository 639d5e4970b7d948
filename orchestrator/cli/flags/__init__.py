# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands share, and how they become specs. Nothing here calls a manager."""
