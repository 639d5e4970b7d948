# SPDX-License-Identifier: Apache-2.0
"""Conversion of a project's tree to a stack: specs of services, networks, volumes and files.

One module per part of a spec; `assembly` is the entry point. Not here: reading and validation of
files (`project`, `schema`).
"""
