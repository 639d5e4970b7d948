# SPDX-License-Identifier: Apache-2.0
"""Networks of third-party plugins: chains of CNI plugins, and Docker's network drivers.

To the rest of the agent they look like Orc's own: `CompositeNetwork` (`composite`) has the methods
of `network.node_network.NodeNetwork` and passes each call to the implementation of the network that
it is about. The network helper always makes and removes a container's namespace; a plugin connects
it.

**Records come first.** An attachment is recorded (`attachment_records`) before a plugin is called,
and until the plugin has released everything. So what a kill or a power loss left half made is found
and released, with the plugin's result (CNI's `prevResult`), also after the network was removed.

**Plugins are not trusted.** Calls have time limits, results are checked, and an error becomes one
line that begins with the plugin's name. A plugin that fails to release an attachment delays neither
the container's end nor other networks: the call is repeated with backoff.

An agent waits for a plugin that an earlier agent started: it has inherited a lock.
"""
