# SPDX-License-Identifier: Apache-2.0
"""The connection to the managers: sessions, channels, certificates, the node's description.

`session` keeps one stream with one manager and redials; what a manager assigns over it is handed to
`tasks` and `network`. Streams beside the session (logs, exec, images) are in `streams`.
"""
