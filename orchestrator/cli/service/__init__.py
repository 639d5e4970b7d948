"""`orc service`, `orc job`, `orc plan`: what users declare, and waiting for convergence."""
