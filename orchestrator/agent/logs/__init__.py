# SPDX-License-Identifier: Apache-2.0
"""Logs of containers: logging drivers, and logs of tasks that have ended.

conmon keeps the newest lines of each container in files on the node, and `orc logs` reads them. A
driver that sends lines elsewhere reads the same files (`log_reader`), records how far it has read,
and writes the lines to a target (`jsonfile`, `journald`, `syslog`). So the files are its buffer: a
slow or unreachable target delays no container, a restarted agent continues where it was, and what
exceeds the buffer is dropped, counted and reported. Log streams to a manager are in `streams`.
"""
