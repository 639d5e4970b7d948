# SPDX-License-Identifier: Apache-2.0
"""Volumes of this node: data that outlives the containers that use it.

The manager decides which node has a volume, and sends it with the task that mounts it. Here it is
created on first use, filled from the image's folder, mounted as long as a container uses it, and
removed on the manager's order:

- `mount_plan`: from a task, its image and `volumes_from`, to the list of mounts; pure.
- `volume_records`: volumes and their users on disk. A volume is a folder with `volume.json`, never
  half-made (it is renamed into place); a use is a file, written before anything is mounted and
  removed after it is unmounted, so that no mount is forgotten by a kill at any point.
- `local_driver`: the driver that every node has: a folder, a mount of whatever mount(8) takes
  (`type`, `device`, `o`), or with `size` a separate file system, which is a hard limit.
- `copyup`: fills a volume. The record has a flag meanwhile, so that an interrupted copy is
  restarted. It reads the image's layers, never the container's root, so that owners are the
  image's.
- `bind_mounts`: folders of the node, tmpfs, and folders of a volume, mounted where no symbolic link
  of a container can lead out of it.
- `plugin_driver`: Docker's volume plugin protocol, over `agent.plugins`.
- `volume_store`: all of these together. `task_volumes`: the volumes of one task.

**Owners.** Files of a volume are stored with the ids that the container sees. A container with a
user namespace has its volumes mounted through the namespace's map, so that a file of user 1000
stays one of user 1000 whatever host ids its next user gets.

**Plugins are not trusted.** Calls have limits of time and size. A plugin that does not respond for
five seconds counts as hung until it responds. Responses are validated. A child process accesses the
paths of a plugin, since access to a dead FUSE mount never returns. A mount that may exist is
recorded, so it is unmounted when the plugin responds again; a container's end never waits for that.
"""
