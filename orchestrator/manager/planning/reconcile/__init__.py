# SPDX-License-Identifier: Apache-2.0
"""Reconciling: which tasks a service should have, compared with those that it has.

Replicated and global services, jobs, standalone containers; restarts, updates and rollbacks,
evictions from drained and failed nodes; moves; which queued jobs start; whether a service has
converged. All of it works on a `slots.Draft`. Not here: choosing nodes (`scheduling`).
"""
