# SPDX-License-Identifier: Apache-2.0
"""Containers by crun, each under a conmon: from a bundle on disk to a running program and its end.

`crun.CrunRuntime` implements `interface.Runtime`; the other modules are its parts. What is in a
bundle's configuration is decided in `spec`.
"""
