# SPDX-License-Identifier: Apache-2.0
"""Docker's commands on containers, and interactive sessions with their processes."""
