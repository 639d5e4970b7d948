# SPDX-License-Identifier: Apache-2.0
"""Chaos with a judge: a dev cluster under simulated users and seeded faults, and a checker that
judges the recorded history.

    make chaos ARGS="--minutes 30 --seed 7 --managers 3 --nodes 5"

Two halves that meet in a file of JSON lines (`history`):

- The harness drives a real dev cluster and only records: `users` and `traffic` (calls and
  requests, each with its outcome), `faults` (drawn from the seed), and observers that see the
  cluster from outside the managers: `containers` (processes on the hosts), `storewatch` (each
  commit of etcd), `leftovers` (mounts, namespaces, processes and keys).
- `rules` judge the history. They are pure, one module for each family of invariants, and do not
  know how it was recorded. `python -m tests.chaos.judge FILE` judges a recorded file again.

No part imports a manager's or agent's code, except to decode what the store holds.
"""
