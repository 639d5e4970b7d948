# SPDX-License-Identifier: Apache-2.0
"""Certificates, join tokens, and encryption at rest.

`certificates` issues, renews and revokes; `joining` admits hosts without a certificate. `vault`
seals secrets with a key that is never in etcd; `document_store` and `registry_credentials` use it,
and `key_check` refuses a manager that has another key.
"""
