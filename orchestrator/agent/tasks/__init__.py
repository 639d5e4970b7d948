# SPDX-License-Identifier: Apache-2.0
"""Tasks of this node: from an assignment to a running container, and to its end.

`worker` takes assignments and gives each task a `runner`, which repeatedly asks `lifecycle` (pure)
for the next step and does it with the backends (images, volumes, network, runtime). Health checks,
lifecycle hooks, secrets and the reporting of statuses belong here. How the backends work does not.
"""
