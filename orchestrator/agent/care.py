"""Who looks after one container's health for as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from orchestrator.agent.health import Checkup, Prober, judge, wait
from orchestrator.model.specs import HealthCheck
from orchestrator.model.tasks import Health, TaskStatus


class Patient(Protocol):
    """A running container, as its runner knows it."""

    @property
    def id(self) -> str: ...

    @property
    def status(self) -> TaskStatus: ...


class Caretaker:
    """Probes one container; between two runs of it, nothing is remembered."""

    def __init__(self, probes: Prober, clock: Callable[[], float]) -> None:
        self._probes = probes
        self._clock = clock
        self._pid = 0
        self._checkup = Checkup(Health.STARTING, since=0.0)

    async def attend(
        self, patient: Patient, check: HealthCheck, tell: Callable[[Health, str], None]
    ) -> None:
        """Probe until cancelled, and `tell` each change of health, or of what a failing probe
        says. A container that is paused is let alone."""
        if self._pid != patient.status.pid:
            # A new run, or one that an earlier agent looked after: its word stands.
            status = patient.status
            self._pid = status.pid
            self._checkup = Checkup(status.health, status.started_at, output=status.health_output)
        while True:
            await asyncio.sleep(wait(check, self._checkup))
            status = patient.status
            if status.paused:
                continue
            answer = await self._probes.probe(patient.id, check, status.addresses)
            self._checkup = judge(check, self._checkup, answer, status.started_at, self._clock())
            if (self._checkup.health, self._checkup.output) != (
                status.health,
                status.health_output,
            ):
                tell(self._checkup.health, self._checkup.output)
