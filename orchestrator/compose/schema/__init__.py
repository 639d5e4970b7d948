# SPDX-License-Identifier: Apache-2.0
"""The schema of compose files: the keys as data, each with the kind of its value.

A kind validates a value, expands its short forms, and merges two values. Not here: what the keys
mean in a cluster (`conversion`).
"""
