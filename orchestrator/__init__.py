"""Orc: a multi-host container orchestrator, a Swarm made small and right.

Packages, by noun: `model` (what things are), `manager` (decides and keeps state), `agent` (one
node: runs containers), `cni` (how a container is connected), `cli` (the `orc` command), `dev`
(a cluster of namespace hosts on one machine), `identity` (certificates, tokens, roles).
Imports point one way: cli → model; manager, agent → model; never manager ↔ agent; `cni` imports
none of them.
"""

__version__ = "0.1.0"
