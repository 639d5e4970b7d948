"""Docker's commands on containers, and interactive sessions with their processes."""
