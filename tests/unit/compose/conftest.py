# SPDX-License-Identifier: Apache-2.0
"""Puts this folder on the path, so that tests in the folders below import `composekit`."""
