from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.manager.store.etcd import EtcdKv
from orchestrator.manager.store.etcdtls import EtcdTls
from orchestrator.manager.store.kv import Guard, StoreError

MISSING = EtcdTls(Path("/no/ca.pem"), Path("/no/cert.pem"), Path("/no/key.pem"))


@pytest.mark.parametrize(
    ("endpoints", "tls", "words"),
    [
        ([], None, r"no etcd endpoint given \(check --etcd-endpoints\)"),
        (["10.0.0.1:2379"], None, "'10.0.0.1:2379' is not a URL such as https://"),
        (["ftp://10.0.0.1"], None, "is not a URL"),
        (["http://10.0.0.1:2379/v3"], None, "is not a URL"),
        (["http://"], None, "is not a URL"),
        (["http://10.0.0.1:port"], None, "is not a URL"),
        (["https://10.0.0.1:2379"], None, "needs a CA file, a certificate and a key"),
        (["http://10.0.0.1:2379"], MISSING, "is not https, but etcd certificates are given"),
        (["https://10.0.0.1:2379"], MISSING, "cannot read the etcd certificate file /no/ca.pem"),
    ],
)
def test_bad_endpoints_are_refused_in_words(
    endpoints: list[str], tls: EtcdTls | None, words: str
) -> None:
    with pytest.raises(StoreError, match=words):
        EtcdKv(endpoints, tls)


@pytest.mark.parametrize("revisions", [{}, {"mod_revision": 1, "create_revision": 1}])
def test_a_guard_compares_exactly_one_revision(revisions: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="set mod_revision or create_revision"):
        Guard("a", **revisions)
