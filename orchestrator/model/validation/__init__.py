# SPDX-License-Identifier: Apache-2.0
"""Validation of specs.

Pure functions that raise a ValueError for the user (or yield faults). The CLI calls them before it
sends, the manager before it stores. `service_specs` is the entry point. Not here: parsing
(`model.formats`), and whether a spec fits the cluster as it is (`manager.planning`).
"""
