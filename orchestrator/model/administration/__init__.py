# SPDX-License-Identifier: Apache-2.0
"""Objects of the cluster's administration: managers, certificates and roles, scheduled backups,
and orphans, which are containers of before a restore.
"""
