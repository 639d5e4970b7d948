# SPDX-License-Identifier: Apache-2.0
"""Compose files: parses a project's files into the services, networks and volumes of a stack.

Implements the compose specification (https://github.com/compose-spec). Pure, except for the reader
that callers pass in. The steps, in order:

    project/     files → one tree: YAML, `${NAME:-default}`, `include`, `extends`, profiles, merging
    tree         the tree, in which each value has its file and line
    schema/      the specification's keys as data; a kind validates a value, expands its short
                 forms, and merges two values
    conversion/  the tree → a `stack`: specs of services, networks, volumes and files, under their
                 names in the cluster, which follow Docker's rules
    stack        the data classes of a stack

Scalars stay strings until the schema gives them a type: `8080:80` is not a number in base 60, and
`1.10` stays `1.10`. An unknown key is an error; an unsupported one is an error that says so; one
without effect in a cluster is reported in a note. Nothing in a file is dropped silently.

Not here: reading files from disk and deploying stacks (`cli`).
"""
