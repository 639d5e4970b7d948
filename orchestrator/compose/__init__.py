# SPDX-License-Identifier: Apache-2.0
"""Compose files: from the texts of a user's files to the services, networks and volumes of a stack.

Implements the compose specification (https://github.com/compose-spec). Pure, except for the reader
that callers pass in. In the order of the steps:

    project/     texts → one tree: YAML, `${NAME:-default}`, `include`, `extends`, profiles, merging
    tree         the tree, in which each value knows its file and line
    schema/      the specification's keys as data; a kind checks a value, brings its short forms
                 into the long one, and merges two
    conversion/  the tree → a `stack`: specs of services, networks, volumes and files, by the names
                 that they have in the cluster, which are Docker's
    stack        what a stack is

Texts are kept as they were written until the schema says what they are: `8080:80` is no number in
base 60, and `1.10` stays `1.10`. A key that is not in the schema is an error; one that is not
supported is refused by name; one that makes no difference in a cluster is reported in a note. So
nothing of a file is dropped silently.

Not here: reading files from disk and deploying stacks (`cli`).
"""
