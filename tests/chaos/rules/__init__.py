# SPDX-License-Identifier: Apache-2.0
"""What must hold in every history: one module for each family of invariants. Pure.

A rule is a function from a history to its violations. A rule that needs an excuse for something
(a container that ends, a node that is called down) accepts only a fault that can cause it: a
manager's fault never excuses what happens on a node.
"""
