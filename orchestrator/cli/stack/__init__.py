# SPDX-License-Identifier: Apache-2.0
"""`orc stack`: compose files and charts, compared with the cluster and deployed step by step."""
