"""Images on one node: kept, unpacked, built, and handed to other nodes.

An image is a tree of immutable, content-addressed blobs: a manifest names a config and layers by
their SHA-256. That makes the rest simple, and this package leans on it everywhere:

- **The store** (`store`) is a folder of blobs in the OCI layout plus one small index file of
  names. A blob is written under a temporary name, verified while it is written, flushed, and only
  then renamed to its digest, so whatever bears its final name is whole. The same holds for an
  unpacked layer, which is a folder. A crash leaves temporary files only; they go at the next
  start. Nothing is repaired, because nothing half-made is ever visible.
- **Bytes are looked at once.** A blob is hashed as it is written (`incoming`), and a layer is
  unpacked while its blob still comes (`blobstore`): it counts only once both are found right.
- **A layer is unpacked once a node**, under the digest of its uncompressed content (its *diff
  id*), and is then a read-only lower folder of any number of overlay mounts. Layers do not depend
  on what lies below them, so images share them freely, whatever their order.
- **Unpacking is the dangerous part**: the bytes come from strangers and the agent is root.
  So a child process (`untar`) changes its root into the empty folder before it reads the first
  header. Every `..`, absolute link or symlink trick then resolves inside, by the kernel's rules
  and not by ours. The child runs nothing from the layer, opens no file that it did not make
  itself, and has no other files open. `unpack` is the agent's side of it.
- **Nodes feed each other** (`blobs`): each serves its blobs read-only. What arrives is verified
  by its digest, so it does not matter which node sent it, and a transfer that broke goes on from
  another node at the byte where it stopped.
- **Work is shared** (`flight`): ten containers that wait for one layer cause one download and one
  unpacking, which is cancelled when the last of them has gone away.
- **The ecosystem's formats and tools**: archives of docker, podman, skopeo and buildah are read
  directly (`archive`, `manifest`); Dockerfiles are buildah's business (`build`). Its storage is
  the node's own, so several agents on one machine never meet.

What an image says of its process comes out as `config.ImageConfig`; the runtime gets a
`config.LocalImage`: folders and defaults, and need not know any of the above.
"""
