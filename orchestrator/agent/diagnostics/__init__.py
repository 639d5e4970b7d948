# SPDX-License-Identifier: Apache-2.0
"""Checks of this host and its paths to other nodes, and its part of support bundles.

A node measures and reports; the manager evaluates the results. What the measurements are used for
(the MTU of networks) is in `network`.
"""
