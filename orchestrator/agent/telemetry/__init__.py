# SPDX-License-Identifier: Apache-2.0
"""Measurements: Prometheus metrics, resource usage of containers and disk, network flows.

Everything is read when it is asked for, but for the last hour's samples of the web page. Health
checks are in `tasks`.
"""
