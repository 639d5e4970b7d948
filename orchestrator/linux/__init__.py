"""Kernel and file system primitives that managers, agents and network helpers share.

Modules here import the standard library only, so that whatever must start fast can use them.
"""
