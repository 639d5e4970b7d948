"""`orc network`: networks, their policies, and diagnosis of connections between nodes."""
