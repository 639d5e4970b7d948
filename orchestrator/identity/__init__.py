# SPDX-License-Identifier: Apache-2.0
"""Identity: the cluster's certificate authority, join tokens, and what a role may do.

Every connection is mutual TLS 1.3. A certificate's subject says who its holder is: the common
name is an id, the organisation a role (`manager`, `worker`, `admin`), the organisational unit
the cluster's id. `roles` holds the one table of which role may call which RPC; a node speaks
only for the id in its own certificate.

How a host gets in: the operator hands it a token, `ORC-1-<digest of the CA>-<secret>`. The host
requests the CA certificate from the manager's join port over an untrusted connection, and continues
only if it has the digest in the token; so a false manager never learns the secret. It then sends
the secret with a signing request over TLS verified against that CA, and gets a certificate for a
fresh node id.

gRPC's Python API cannot set a lowest TLS version. All keys here are ECDSA, so the top package
leaves gRPC only a TLS 1.2 cipher suite that needs an RSA key: a TLS 1.2 handshake finds no suite
in common and fails, and TLS 1.3, whose suites are set apart, is all that is left.

Files: `ca` (make, sign), `certificates` (a certificate and its key), `join_tokens`, `tls`
(credentials, the peer of a call), `roles` (the guard of every server), `revocation`, `renewal`,
`host_identity` (the identity folder, keys 0600), `join` (the host's side), `bootstrap` (the first
steps of a cluster and of a host).
"""
