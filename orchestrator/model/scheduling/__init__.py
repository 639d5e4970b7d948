# SPDX-License-Identifier: Apache-2.0
"""What users declare about where, when and beside what tasks run: constraints, affinities,
disruption budgets, autoscaling policies, queues of jobs.

Parts of specs and of stored objects; how they are decided on is in `manager.planning`.
"""
