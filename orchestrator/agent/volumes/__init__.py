"""Volumes of this node: data that outlives the containers that use it.

The manager decides which node has a volume, and sends it along with the task that mounts it. Here
it is made when it is first needed, filled from the image's folder, mounted for as long as anybody
uses it, and removed when the manager orders so. What the parts are:

- `plan`: from a task, its image and whom it has volumes from, to the list of what to mount; pure.
- `records`: what is on disk of volumes and of who uses them. A volume is a folder with
  `volume.json`, never half-made (it is renamed into place); a use is a file, written before
  anything is mounted and removed after it is unmounted, so that no mount is forgotten by a kill at
  any point.
- `local`: the driver that every node has: a folder, a mount of whatever mount(8) takes (`type`,
  `device`, `o`), or with `size` a file system of its own, which is a hard limit.
- `copyup`: the filling. A mark in the record says that it is under way, so what a kill left half
  done is begun anew; the image's layers are read, never the container's root, so that owners are
  those that the image has.
- `subpaths`: a folder of a volume, mounted where no link that a container makes can lead it out.
- `plugins`, `pluginapi`: Docker's volume plugin protocol, over `agent.plugins`.
- `store`: all of it together.

**Owners.** Files of a volume are stored with the ids that the container sees. A container with a
user namespace has its volumes mounted through the namespace's map, so that a file of user 1000
stays one of user 1000 whatever host ids its next user gets.

**Plugins are not trusted to behave.** Each call has its time and its size: who answers nothing for
five seconds is hung and counts as silent until it answers; answers are checked; a
path of theirs is looked at by a child process, since one look at a dead FUSE mount hangs for good.
A mount that may have been made is on record, so it is given back when the plugin answers again,
and a container's end never waits for that.
"""
