"""Questions to the name server are not tracked; pure.

A resolver asks each question from a port of its own, so each would be a connection in the kernel's
table for half a minute: a busy container would fill it, and then nobody on the host could connect.
Nothing is translated on the way from a container to its gateway and back, so nothing needs
tracking.
"""

from __future__ import annotations

from .ruleset import INET, Chain, Part

BASE = Part(
    chains={
        f"{INET} questions": Chain(
            ("iifname @bridges udp dport 53 fib daddr . iif type local notrack",),
            "type filter hook prerouting priority raw;",
        ),
        f"{INET} answers": Chain(
            ("oifname @bridges udp sport 53 fib saddr . oif type local notrack",),
            "type filter hook output priority raw;",
        ),
    },
)
