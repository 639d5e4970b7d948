"""Docker's commands on containers, and sessions with the programs in them."""
