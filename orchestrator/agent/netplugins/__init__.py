# SPDX-License-Identifier: Apache-2.0
"""Networks of third-party plugins: chains of CNI plugins, and Docker's network drivers.

The rest of the agent uses them like Orc's own: `CompositeNetwork` (`composite`) has the methods of
`network.node_network.NodeNetwork` and dispatches each call to the implementation of its network.
The network helper always creates and removes a container's namespace; a plugin connects it.

**Records come first.** An attachment is recorded (`attachment_records`) before a plugin is called,
and until the plugin has released it. So after a kill or a power loss, incomplete attachments are
found and released, with the plugin's result (CNI's `prevResult`), also after the network was
removed.

**Plugins are not trusted.** Calls have time limits, results are checked, and an error becomes one
line that begins with the plugin's name. A plugin that fails to release an attachment delays neither
the container's end nor other networks: the call is repeated with backoff.

A CNI plugin inherits a lock, so a restarted agent waits for a plugin that its predecessor started.
"""
