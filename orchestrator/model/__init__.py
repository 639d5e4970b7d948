# SPDX-License-Identifier: Apache-2.0
"""The data model: specs, stored objects, task states, their validation and formats.

A *spec* is a user's intent: the system never edits it. A *status* is what was observed.
*desired_state* is the manager's order to an agent. All objects are frozen slotted dataclasses, so
a snapshot is a cheap copy of references and a pure function cannot change what it was given.

    specs       what users declare: service, task, container
    services, tasks, nodes, networks, documents, objects
                what the store keeps
    states      the task's life as a table
    jobs, dependencies, hooks, mounts, placement
                parts of specs
    scheduling/ parts of specs and objects that say where, when and beside what tasks run
    administration/
                managers, access, backups, orphans
    convert     dataclass ⇄ protobuf: the only place where the two meet (`extensible`: its base)
    validation/ which specs are valid, with errors for users
    formats/    texts that users and other tools write: schedules, templates, Dockerfiles, …
    compatibility/
                which releases work together, and the features that all parts of a cluster have
    units, names
                sizes, shares, durations; names of images and objects, suggestions for typos

Units everywhere: memory and sizes in bytes, CPU in shares (1024 a core), durations in float
seconds, points in time in float seconds since the epoch (UTC).

Not here: anything that does I/O, and whether a spec fits the cluster as it is
(`manager.planning`).
"""
