# SPDX-License-Identifier: Apache-2.0
"""Backups: the store as an archive (`store_dump`), written on a schedule (`scheduled`), and a
manager made from one (`restore`); a cluster from its only surviving manager (`recovery`).
"""
