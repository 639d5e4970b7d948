"""What things are: specs, objects, task states and the rules of a valid spec.

*Spec* is a user's intent: the system never edits it. *Status* is what was observed.
*desired_state* is the manager's order to an agent. All objects are frozen slotted dataclasses, so
a snapshot is a cheap copy of references and a pure function cannot change what it was given.

Files: `specs` (what users declare; `jobs` and others are parts of it), `objects` (what the store
keeps), `states` (the task's life as a table), `validate` (pure checks with the user's words),
`convert` (protobuf at the edges), `units` (sizes, shares, durations as users write them), `names`
(image names, near misses).

Units everywhere: memory and sizes in bytes, CPU in shares (1024 a core), durations in float
seconds, points in time in float seconds since the epoch (UTC).
"""
