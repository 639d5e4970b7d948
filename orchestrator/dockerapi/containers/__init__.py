# SPDX-License-Identifier: Apache-2.0
"""Containers and execs: their documents, their life, and their streams."""
