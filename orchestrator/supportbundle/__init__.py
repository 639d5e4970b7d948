# SPDX-License-Identifier: Apache-2.0
"""Diagnostic data of a host for `orc support-bundle`, without passwords, tokens and private keys.

Collection on one host, and redaction. Collection from a cluster's hosts is in `cli` and
`manager.api`.
"""
