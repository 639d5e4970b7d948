# SPDX-License-Identifier: Apache-2.0
"""Lets tests in the folders below import the kits beside this file."""
