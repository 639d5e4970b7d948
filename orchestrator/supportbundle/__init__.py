# SPDX-License-Identifier: Apache-2.0
"""The facts of `orc support-bundle`, without passwords, tokens and private keys.

What a host reports of itself, and the removal of secrets. Who gathers facts of a cluster is in
`cli` and `manager.api`.
"""
