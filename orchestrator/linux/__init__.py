# SPDX-License-Identifier: Apache-2.0
"""Kernel and file system primitives, shared by managers, agents, network helpers and dev hosts.

System calls that Python has no function for (`libc`), mounts, untrusted trees, confined programs,
processes, file watches, atomic files.
Modules here import the standard library and each other only, so that whatever must start fast,
such as a program in a bare interpreter (`orchestrator.daemon.bareprogram`), can use them. What a
container, network or volume is belongs elsewhere. Errors are OSError unless a function says
otherwise.
"""
