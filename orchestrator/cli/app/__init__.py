# SPDX-License-Identifier: Apache-2.0
"""What every command is built on: command groups, errors and exit statuses, contexts, help, Ctrl-C.

Nothing here calls a manager or knows a single command's flags.
"""
