"""What a check of the doctor comes back with: findings, what it saw that is well, and what it could not see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from oci_hook.errors import VgpuError
from vgpu.doctor import catalogue

OK, UNSEEN, WARNING, FAILURE = "ok", "unseen", "warning", "failure"
STATES = (OK, UNSEEN, WARNING, FAILURE)  # the worst last


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to act on. severity: "warning" or "failure". subject: what it is about, a path or a name.

    evidence: what was seen, with figures. remedy: the command, or the one step, that mends it here.
    """

    code: str
    severity: str
    subject: str
    evidence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """Something that could not be looked at. It is no finding, and it is not silence either."""

    subject: str
    why: str


@dataclass(frozen=True, slots=True)
class Seen:
    """Something that was looked at and is well, in a few words."""

    text: str


Result = Finding | Unseen | Seen


class CannotSee(Exception):
    """Raised by a check that can go no further: its other results stay, and this becomes an `Unseen`."""

    def __init__(self, subject: str, why: str) -> None:
        super().__init__(f"{subject}: {why}")
        self.unseen = Unseen(subject, why)


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the table: what was looked at under one name, and all that came of it."""

    group: str
    name: str
    results: tuple[Result, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.results if isinstance(one, Finding))

    @property
    def unseen(self) -> tuple[Unseen, ...]:
        return tuple(one for one in self.results if isinstance(one, Unseen))

    @property
    def seen(self) -> tuple[str, ...]:
        return tuple(one.text for one in self.results if isinstance(one, Seen))

    @property
    def state(self) -> str:
        """The worst of its results, one of STATES."""
        states = [OK, *(one.severity for one in self.findings), *(UNSEEN for _ in self.unseen)]
        return max(states, key=STATES.index)


def found(code: str, subject: str, evidence: str, *, remedy: str = "", severity: str = "") -> Finding:
    """A finding with what the catalogue has, where the check knows nothing better."""
    entry = catalogue.entries()[code]
    return Finding(code, severity or entry.severity, subject, evidence, remedy or entry.remedy)


def refused(error: VgpuError, subject: str, *, severity: str = "") -> Finding:
    """A refusal, as a finding: hook, shim and commands raise what the doctor shows."""
    return found(error.code, subject, str(error), remedy=error.remedy, severity=severity)


def run(group: str, name: str, results: Iterable[Result]) -> Check:
    """Draws a check's results. What it cannot see, or what refuses it, is a result as well."""
    kept: list[Result] = []
    try:
        for one in results:
            kept.append(one)
    except CannotSee as blind:
        kept.append(blind.unseen)
    except VgpuError as error:
        kept.append(refused(error, name))
    except OSError as error:  # a file that ended or changed while it was looked at, or is another user's
        kept.append(Unseen(str(error.filename or name), (error.strerror or str(error)).lower()))
    return Check(group, name, tuple(kept))
