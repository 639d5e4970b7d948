# SPDX-License-Identifier: Apache-2.0
"""What commands print: tables, JSON, templates, filters, progress bars.

Rows of a single kind of object stand with its noun (`cluster.node_rows`, `service.service_rows`).
"""
