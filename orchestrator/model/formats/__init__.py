# SPDX-License-Identifier: Apache-2.0
"""Formats: texts that users and other tools write, parsed, checked and formatted.

One format per module, all of them pure; errors are ValueErrors for the user. Sizes and
durations are in `model.units`, names in `model.names`. Not here: compose files
(`orchestrator.compose`).
"""
