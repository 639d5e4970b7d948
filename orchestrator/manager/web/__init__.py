# SPDX-License-Identifier: Apache-2.0
"""The HTTPS front end: the web page, `/metrics`, and `/sd` (service discovery).

    orc dashboard ──▶ a ticket (minutes) ──▶ POST /api/session ──▶ a cookie (hours)
    GET /api/events   the whole cluster once, then its changes, as server-sent events
    GET /api/traffic  connections between services, every few seconds while a page is open
    GET /api/history  resource usage of a task or node in the last hour
    GET /api/logs     a service's or task's log lines as they are written
    POST /api/act     scale, drain, activate, roll back, restart, by the same operations as the CLI

The page itself is plain files in `page/`, loads nothing from other hosts, and shows nothing that
`orc inspect` would not. Its sessions are in `operations.administration.web_sessions`.
"""
