# SPDX-License-Identifier: Apache-2.0
"""Measurements: Prometheus metrics, resource usage of containers and disk, network flows.

All values are read on request, except the samples of the last hour for the web page. Health checks
are in `tasks`.
"""
