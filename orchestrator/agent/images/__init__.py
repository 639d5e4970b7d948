# SPDX-License-Identifier: Apache-2.0
"""Images on one node: the store, and how images reach it.

Packages: `layers` unpacks and exports tar streams, `transfer` exchanges images with registries,
other nodes, archives and tools. Images are built in `agent.builds`.

An image is a tree of immutable, content-addressed blobs: a manifest names a config and layers by
their SHA-256. This package relies on that everywhere:

- **The store** (`store`) is a folder of blobs in the OCI layout and a small index file of names. A
  blob is written to a temporary name, verified while it is written, flushed, and only then renamed
  to its digest, so a blob under its final name is complete. The same holds for an unpacked layer,
  which is a folder. A crash leaves temporary files only, which the next start removes. Nothing is
  repaired, because nothing incomplete is ever visible.
- **Bytes are read once.** A blob is hashed as it is written (`staging`), and a layer is unpacked
  while its blob is still arriving (`blobstore`): it counts only once both are verified.
- **A layer is unpacked once per node**, under the digest of its uncompressed content (its *diff
  id*), and is then a read-only lower folder of any number of overlay mounts. Layers do not depend
  on the layers below them, so images share them in any order.
- **Unpacking is confined**: the input is untrusted and the agent is root. So a child
  process (`layers.untar`) changes its root to the empty folder before it reads the first header.
  Every `..`, absolute link or symlink then resolves inside, by the kernel's rules and not by ours.
  The child executes nothing from the layer, opens only files that it created itself, and has no
  other files open. `layers.unpack` starts it.
- **Nodes serve each other** (`transfer.image_peers`): each serves its blobs read-only. A received
  blob is verified by its digest, so any node may send it, and an interrupted transfer resumes from
  another node at the same byte.
- **Work is shared** (`singleflight`): ten containers that wait for one layer cause one download and
  one unpacking, which is cancelled when the last waiter has gone.
- **Formats and tools of the ecosystem**: archives of docker, podman, skopeo and buildah are read
  directly (`transfer.archive`, `image_spec`).

An image's process defaults are `image_spec.ImageConfig`; the runtime gets an
`image_spec.LocalImage`: folders and defaults, independent of all of the above.
"""
