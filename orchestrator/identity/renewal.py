# SPDX-License-Identifier: Apache-2.0
"""Automatic renewal of a host's certificate, long before it expires.

Between half and four fifths of its validity. The clock may be stepped and the host suspended, so
the time is checked periodically. Failures are logged and retried with backoff.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress

from orchestrator.identity.certificates import KeyPair, Life, PairFiles

log = logging.getLogger(__name__)

_LOOK = 3600.0
"""Maximum seconds between checks of the clock."""
_AGAIN_FIRST, _AGAIN_MOST = 1.0, 1 / 200
"""Seconds until the first retry of a failed renewal, doubled each time; and the maximum delay as a
fraction of the certificate's validity."""

Sign = Callable[[str], Awaitable[str]]
"""Gives the certificate (PEM) for a signing request (PEM). Raises NotRenewed."""


class NotRenewed(Exception):
    """The certificate could not be renewed; the text is one line with the cause."""


async def keep_renewed(
    files: PairFiles,
    request: Callable[[], Awaitable[tuple[str, str]]],
    sign: Sign,
    *,
    unit: float,
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    outdated: Callable[[str], bool] = lambda certificate: False,
    wake: asyncio.Event | None = None,
) -> None:
    """Renew the certificate in `files` whenever it is due, until cancelled.

    `request` makes a key and a signing request for it; `unit` (0 to 1) is this holder's place in
    the time for renewal. A certificate that is `outdated` is due at once; set `wake` to have it
    checked. Existing connections keep the certificate they began with; new ones read
    the files.
    """
    complaint, failures = "", 0
    while True:
        certificate = files.read().certificate
        life = Life.of(certificate)
        if life is None:
            log.error("cannot read the certificate in %s; it is not renewed", files.certificate)
            return
        wait = (life.renewal(unit) - now()).total_seconds()
        if wait > 0 and not outdated(certificate):
            complaint, failures = "", 0
            await _pause(min(wait, _LOOK), wake)
            continue
        try:
            key, asked = await request()
            files.replace(KeyPair(await sign(asked), key))
        except (NotRenewed, OSError) as error:
            if str(error) != complaint:
                complaint = str(error)
                log.warning(
                    "cannot renew the certificate of this host: %s; it expires at %s; retrying "
                    "until then",
                    complaint,
                    life.ends.isoformat(),
                )
            most = min((life.ends - life.begins).total_seconds() * _AGAIN_MOST, _LOOK)
            await _pause(min(_AGAIN_FIRST * 2.0 ** min(failures, 16), most), wake)
            failures += 1
            continue
        log.info("the certificate of this host was renewed", extra={"ended": life.ends.isoformat()})


async def _pause(seconds: float, wake: asyncio.Event | None) -> None:
    """Sleep, but no longer than until `wake` is set; clears it."""
    if wake is None:
        await asyncio.sleep(seconds)
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()
    wake.clear()


async def request_elsewhere() -> tuple[str, str]:
    """`ca.new_request` in a process of its own, so that this one need not load the certificate
    library."""
    program = (
        "from orchestrator.identity.ca import new_request\nprint(*new_request(), sep='', end='')"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", program, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise NotRenewed(f"cannot generate a key (exit status {process.returncode})")
    key, begin, rest = said.decode().partition("-----BEGIN CERTIFICATE REQUEST-----")
    return key, begin + rest
