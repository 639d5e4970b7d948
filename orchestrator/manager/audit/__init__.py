"""The audit trail: who changed what, from where, and with which result.

`methods` says which calls are in it and what they are about, `calls` observes them, `trail` keeps
the entries in files and gives them back.
"""
