"""What `explain` finds out about one container on one GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vgpu.monitor.rows import Row

WORTH_NAMING = 0.05  # of the time
OWN, QUOTA, NEIGHBOURS, HOST = "own", "quota", "neighbours", "host"
PARTS = (OWN, QUOTA, NEIGHBOURS, HOST)
MEMORY, NOTHING = "memory", "nothing"


@dataclass(frozen=True, slots=True)
class Report:
    """One container on one GPU. seconds: watched, of asked_s. parts: seconds by PARTS. blame: seconds by neighbour.

    denied: allocations refused in that time, by reason. verdict: a part, MEMORY or NOTHING. last: its last row.
    doubts: why the confidence is not high. unknown: what the data cannot show.
    """

    id: str
    name: str
    gpu: int
    asked_s: float
    seconds: float
    looks: int
    last: Row
    parts: Mapping[str, float]
    blame: Mapping[str, float]
    denied: Mapping[str, int]
    verdict: str
    confidence: str
    doubts: tuple[str, ...]
    unknown: tuple[str, ...]
    advice: str
    findings: tuple[str, ...] = field(default=())

    def share(self, part: str) -> float:
        return self.parts[part] / self.seconds if self.seconds else 0.0
