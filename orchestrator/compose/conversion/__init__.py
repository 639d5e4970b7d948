# SPDX-License-Identifier: Apache-2.0
"""Conversion: one tree becomes a stack, that is specs of services, networks, volumes and files.

A module for each part of a spec; `assembly` is the entry point. Not here: reading and checking
(`project`, `schema`).
"""
