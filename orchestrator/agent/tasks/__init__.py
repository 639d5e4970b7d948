# SPDX-License-Identifier: Apache-2.0
"""Tasks of this node: from an assignment to a running container, and to its end.

`worker` takes assignments and starts a `runner` for each task, which repeatedly gets the next step
from `lifecycle` (pure) and performs it with the backends (images, volumes, network, runtime).
Health checks, lifecycle hooks, secrets and the reporting of statuses belong here; the backends do
not.
"""
