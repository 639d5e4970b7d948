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

from orchestrator.identity.certificates import KeyPair, Life, PairFiles

log = logging.getLogger(__name__)

_LOOK = 3600.0
"""Seconds after which the clock is looked at again, at the latest."""
_AGAIN_FIRST, _AGAIN_MOST = 1.0, 1 / 200
"""Seconds after which a certificate that could not be renewed is tried again, from the first time
on, doubled each time; and of its life, the most."""

Sign = Callable[[str], Awaitable[str]]
"""Gives the certificate (PEM) for a signing request (PEM). Raises NotRenewed."""


class NotRenewed(Exception):
    """There is no new certificate for now; one line that says why."""


async def keep_renewed(
    files: PairFiles,
    request: Callable[[], Awaitable[tuple[str, str]]],
    sign: Sign,
    *,
    unit: float,
    now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> None:
    """Renew the certificate in `files` each time that its time has come, until cancelled.

    `request` makes a key and a signing request for it; `unit` (0 to 1) is how late in the time for
    it this holder is. Existing connections keep the certificate they began with; new ones
    read the files.
    """
    complaint, failures = "", 0
    while True:
        life = Life.of(files.read().certificate)
        if life is None:
            log.error("the certificate in %s cannot be read, and is not renewed", files.certificate)
            return
        wait = (life.renewal(unit) - now()).total_seconds()
        if wait > 0:
            complaint, failures = "", 0
            await asyncio.sleep(min(wait, _LOOK))
            continue
        try:
            key, asked = await request()
            files.replace(KeyPair(await sign(asked), key))
        except (NotRenewed, OSError) as error:
            if str(error) != complaint:
                complaint = str(error)
                log.warning(
                    "the certificate of this host cannot be renewed: %s; it ends at %s, and is "
                    "tried again until then",
                    complaint,
                    life.ends.isoformat(),
                )
            most = min((life.ends - life.begins).total_seconds() * _AGAIN_MOST, _LOOK)
            await asyncio.sleep(min(_AGAIN_FIRST * 2.0 ** min(failures, 16), most))
            failures += 1
            continue
        log.info("the certificate of this host was renewed", extra={"ended": life.ends.isoformat()})


async def request_elsewhere() -> tuple[str, str]:
    """`ca.new_request` in a process of its own, which takes the certificate library with it."""
    program = (
        "from orchestrator.identity.ca import new_request\nprint(*new_request(), sep='', end='')"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", program, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise NotRenewed(f"no key could be made (status {process.returncode})")
    key, begin, rest = said.decode().partition("-----BEGIN CERTIFICATE REQUEST-----")
    return key, begin + rest
