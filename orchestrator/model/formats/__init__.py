# SPDX-License-Identifier: Apache-2.0
"""Formats: parsing, validation and formatting of texts that users and other tools write.

One format per module, all of them pure; errors are ValueErrors for the user. Sizes and
durations are in `model.units`, names in `model.names`. Not here: compose files
(`orchestrator.compose`).
"""
