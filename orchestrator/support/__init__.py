"""What goes into `orc support-bundle`, and what must not.

Agents, managers and the command line collect with the same two files, each about its own host:

- `redact` is pure: texts and documents in, the same without what opens a door out. It is applied
  where things are read, so that a secret never leaves its host, and once more by the command line
  before anything is written.
- `hostfacts` reads a host: what the kernel says, the programs that Orc runs, the daemons' logs.
"""
