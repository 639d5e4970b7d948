# SPDX-License-Identifier: Apache-2.0
"""Certificates and their keys: as text, as files that are replaced together, and their validity."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from orchestrator.linux.atomicfile import write_file

MANAGER_NAME = "manager.orc"
"""In every manager's certificate."""

NODE_NAME = "node.orc"
"""In every node's certificate, for its blob server."""

SKEW = dt.timedelta(minutes=5)
"""Certificates begin that long ago, so that hosts with slow clocks accept them."""

_EARLIEST, _LATEST = 0.5, 0.8
"""A certificate is renewed between these fractions of its validity: holders that got theirs
together do not all renew together, and days are left for a manager that is unavailable."""

_TIME = rb"(?:\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z)"
_VALIDITY = re.compile(rb"\x30[\x1e-\x22]" + 2 * _TIME)
"""The field `validity` in DER: UTCTime until 2049, GeneralizedTime after (RFC 5280, 4.1.2.5)."""
_SERIAL = re.compile(rb"\x30\x82..\x30\x82..\xa0\x03\x02\x01\x02\x02", re.S)
"""In DER, what is before the serial number's length in every certificate of version 3 that has from
256 to 65,535 bytes (RFC 5280, 4.1)."""
_AUTHORITY_KEY = re.compile(rb"\x06\x03\x55\x1d\x23\x04.\x30.\x80\x14(.{20})", re.S)
_SUBJECT_KEY = re.compile(rb"\x06\x03\x55\x1d\x0e\x04\x16\x04\x14(.{20})", re.S)
"""In DER, the extensions that identify the issuer's key and the certificate's own (RFC 5280,
4.2.1)."""
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s*(.*?)-----END CERTIFICATE-----\s*", re.S)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate and its private key, both PEM."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class Life:
    """The validity of a certificate."""

    begins: dt.datetime
    ends: dt.datetime

    @classmethod
    def of(cls, certificate: str) -> Life | None:
        """That of a PEM certificate; None if it cannot be read."""
        body = _PEM.search(certificate)
        try:
            found = _VALIDITY.search(base64.b64decode(body[1])) if body else None
        except binascii.Error:
            return None
        if found is None:
            return None
        return cls(_moment(found[1], found[2]), _moment(found[3], found[4]))

    def renewal(self, unit: float) -> dt.datetime:
        """When to renew it; `unit` from 0 to 1 chooses between the earliest and the latest."""
        signed = self.begins + SKEW
        return signed + (self.ends - signed) * (_EARLIEST + (_LATEST - _EARLIEST) * unit)


@dataclass(frozen=True, slots=True)
class Issued:
    """The identity of one certificate, and when it was issued."""

    serial: str
    """Its serial number, in lower-case hexadecimal digits."""
    fingerprint: str
    """SHA-256 of its DER form, in lower-case hexadecimal digits."""
    at: float
    """Seconds since the epoch; certificates have whole seconds only."""
    ends: float
    ca: str = ""
    """Key id of the CA that issued it, in lower-case hexadecimal digits."""

    @classmethod
    def of(cls, certificate: str) -> Issued | None:
        """Read it from a PEM certificate; None if it cannot be read."""
        body, life = _PEM.search(certificate), Life.of(certificate)
        if body is None or life is None:
            return None
        der = base64.b64decode(body[1])
        number = _SERIAL.match(der)
        if number is None:
            return None
        start = number.end() + 1
        value = int.from_bytes(der[start : start + der[number.end()]], "big")
        return cls(
            f"{value:x}",
            hashlib.sha256(der).hexdigest(),
            (life.begins + SKEW).timestamp(),
            life.ends.timestamp(),
            issuer_key_id(certificate),
        )


def issuer_key_id(certificate: str) -> str:
    """Key id of the CA that issued a PEM certificate, in hexadecimal digits; empty if it cannot be
    read."""
    return _extension(_AUTHORITY_KEY, certificate)


def own_key_id(certificate: str) -> str:
    """Key id of a PEM certificate's own key, as `issuer_key_id` has it for what it issued."""
    return _extension(_SUBJECT_KEY, certificate)


def _extension(form: re.Pattern[bytes], certificate: str) -> str:
    body = _PEM.search(certificate)
    try:
        found = form.search(base64.b64decode(body[1])) if body else None
    except binascii.Error:
        return ""
    return found[1].hex() if found else ""


def _moment(short: bytes | None, long: bytes | None) -> dt.datetime:
    digits = long or b"20" + (short or b"")
    return dt.datetime.strptime(digits.decode(), "%Y%m%d%H%M%S").replace(tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True)
class PairFiles:
    """A host's certificate and key as files.

    Both are replaced as one: a third file holds them for as long as the two are not both in place,
    and counts while it is there.
    """

    certificate: Path
    key: Path

    @property
    def _both(self) -> Path:
        return self.certificate.with_suffix(".renewed")

    @property
    def is_being_replaced(self) -> bool:
        """Whether the third file counts."""
        return self._both.exists()

    def read(self) -> KeyPair:
        """The current pair. Raises OSError."""
        while True:
            try:
                return _split(self._both.read_text())
            except FileNotFoundError:
                pair = KeyPair(self.certificate.read_text(), self.key.read_text())
            if not self._both.exists():
                return pair

    def replace(self, pair: KeyPair) -> None:
        """Write another pair; a concurrent reader, also after a crash, gets one or the other.
        Raises OSError."""
        write_file(self._both, pair.certificate + pair.key)
        write_file(self.key, pair.key)
        write_file(self.certificate, pair.certificate, mode=0o644)
        self._both.unlink()

    def stamp(self) -> tuple[int, int]:
        """Changes when the pair is replaced. Raises OSError."""
        status = self.certificate.stat()
        return status.st_mtime_ns, status.st_ino


def _split(both: str) -> KeyPair:
    end = [each.end() for each in _PEM.finditer(both)][-1]
    return KeyPair(both[:end], both[end:])


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """A host's certificate and key, and the certificate of its cluster's CA; all PEM."""

    ca: Path
    pair: PairFiles

    @classmethod
    def of(cls, folder: Path, name: str) -> TlsFiles:
        """Those of `name` (`node` or `manager`) in a data folder."""
        pair = PairFiles(folder / f"{name}.pem", folder / f"{name}.key")
        return cls(folder / "ca.pem", pair)
