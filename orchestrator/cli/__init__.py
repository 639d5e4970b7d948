# SPDX-License-Identifier: Apache-2.0
"""The `orc` command: what a user types, turned into calls of a manager's API.

The command line is a promise: where Docker has a command or flag for a thing, Orc's has the same
name, short form and meaning. Everything that shows something has `--format table|json`, `-q` and
`--filter`; errors are one line on stderr that says what is wrong and what to do.

`main` is the root command: it knows every command's name and summary as data and imports a
command's module only when it is called, so that `orc --help` and completion are quick. Commands of
other packages (`orc manager`, `orc agent`, `orc dev`) come in the same way.

A package per noun holds its commands, in modules named `…_commands`, and what only they need:
`cluster` (with nodes and contexts), `service` (with jobs), `stack`, `container`, `image`,
`network`, `storage` (volumes, secrets, configs), `top`, `system`. They stand on layers that know
no command:

- `app`: click, adapted: groups, errors, exit statuses, contexts.
- `output`: tables, JSON, templates, filters, progress bars.
- `rpc`: calls of a manager by gRPC over mutual TLS.
- `flags`: the flags of specs, which several commands share.
- `completion`, above all: names of objects in the cluster, for the shell.

Startup time is a feature: what imports rich or Textual is imported where it draws, and nothing
imports gRPC's modules, which take longer to import than most commands to run. Modules that
libraries import needlessly are loaded on first use (`app.lazy_imports`), and the process exits
without tearing down (`main`).

There is no asyncio: one command makes one call, or follows one stream.
"""
