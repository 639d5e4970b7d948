"""Compose files: from the texts of a user's files to the services, networks and volumes of a stack.

What is read is the compose specification as it is today (https://github.com/compose-spec), one
step a module, all of them pure but for the reader that they are given:

    yamlfile    a text → a tree whose every value knows its file and line
    variables   `${NAME:-default}` → text
    kinds       what a value may be: checks it, brings short forms into the long one, merges two
    schema      the specification's keys as data, each with its kind
    project     several files, `include`, `extends`, profiles, env files → one tree
    assemble    that tree → a `stack`: networks, volumes, files and specs of services, by the names
                that they have in the cluster, which are Docker's

Texts are kept as they were written until the schema says what they are: `8080:80` is no number in
base 60, and `1.10` stays `1.10`. A key that is not in the schema is an error, and one that cannot
be done is refused by name. What makes no difference in a cluster is said in a note. So nothing of a
file is dropped in silence.
"""
