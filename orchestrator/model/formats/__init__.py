"""Formats: texts that users and other tools write, parsed, checked and formatted.

One format a module, all of them pure; a refusal is a ValueError in the user's words. Sizes and
durations are in `model.units`, names in `model.names`. Not here: compose files
(`orchestrator.compose`).
"""
