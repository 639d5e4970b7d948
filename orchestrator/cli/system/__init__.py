# SPDX-License-Identifier: Apache-2.0
"""Commands about the cluster as a whole, and about this `orc` itself."""
