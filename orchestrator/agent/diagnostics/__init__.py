# SPDX-License-Identifier: Apache-2.0
"""Checks of this host and its paths to other nodes, and its part of support bundles.

A node measures and reports; the manager judges. What the measurements feed (the MTU of networks) is
in `network`.
"""
