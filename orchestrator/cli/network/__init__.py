# SPDX-License-Identifier: Apache-2.0
"""`orc network`: networks, their policies, and diagnosis of connections between nodes."""
