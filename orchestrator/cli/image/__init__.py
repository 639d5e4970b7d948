"""Docker's commands on images, registries and builds."""
