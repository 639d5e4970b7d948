# SPDX-License-Identifier: Apache-2.0
"""The audit trail: who changed what, from where, and with which result.

`audited_methods` lists the audited calls and their subjects, `audit_interceptor` observes them,
`trail` records and queries entries, `audit_files` stores them.
"""
