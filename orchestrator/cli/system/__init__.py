"""Commands about the cluster as a whole, and about this `orc` itself."""
