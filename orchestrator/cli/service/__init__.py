# SPDX-License-Identifier: Apache-2.0
"""`orc service`, `orc job`, `orc plan`: what users declare, and waiting for convergence."""
