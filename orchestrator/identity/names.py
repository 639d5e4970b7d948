"""DNS names in certificates: what a client insists on, whatever address it dials."""

MANAGER_NAME = "manager.orc"
"""In every manager's certificate."""

NODE_NAME = "node.orc"
"""In every node's certificate, for its blob server."""
