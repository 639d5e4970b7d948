"""Networks that others make: chains of CNI plugins, and plugins of Docker's network protocol.

To the rest of the agent they are networks as ours are: `AllNetworks` (`mixed`) has the same methods
as `network.NodeNetwork`, and hands each call to whoever makes the network it is about. The
container's namespace is always ours: the warm helper makes and removes it, others connect it.

**What is on record comes first.** That a container is to be connected is written down (`records`)
before a plugin hears of it, and stays until the plugin has said that nothing is left. So what a
kill or a power loss left half made is found again, and given back with what the plugin had answered
(CNI's `prevResult`), also when the network is no longer known.

**A plugin is a stranger.** Its time is bounded, its answer is looked at, and its error becomes one
line that begins with its name. One that does not take back what it gave holds up neither the
container's end nor this node's other networks: it is asked again, with growing pauses.

A program that an agent started and that outlives it is waited for: it has inherited a lock.
"""
