"""Validation: what a valid spec is, in the user's words.

Pure functions that raise ValueError (or yield faults). The CLI calls them before it sends, the
manager before it stores. `service_specs` is the entry point. Not here: parsing (`model.formats`),
and whether a spec fits the cluster as it is (`manager.planning`).
"""
