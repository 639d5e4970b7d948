# SPDX-License-Identifier: Apache-2.0
"""Backup files of a cluster: their content (`archive`) and their encryption.

The content is encrypted with a passphrase (`passphrase`), or to a recipient by age or GnuPG
(`recipients`). Client and manager share this package: the client encrypts what it asks for, and a
manager what it writes on a schedule. Reading the store, and writing it on a restore, is
`manager.backup`.
"""
