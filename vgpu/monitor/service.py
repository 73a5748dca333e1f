"""vgpu monitor: looks at the host again and again, compares, and keeps what it saw.

Nothing that enforces a slice depends on it: without it there is no history to explain, and nobody compares.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping

from oci_hook import audit
from oci_hook.errors import VgpuError
from oci_hook.records import Policy
from vgpu import output
from vgpu.config import load
from vgpu.monitor import history, sick, status, truth
from vgpu.monitor.calibrate import Charges
from vgpu.monitor.collect import Collector
from vgpu.monitor.rows import rows
from vgpu.monitor.sample import Sample
from vgpu.monitor.truth import Key, Track


def run(config: str, *, interval_s: float, history_bytes: int, allowance_bytes: int, rounds: int | None) -> None:
    """Runs until SIGTERM or SIGINT, or for so many rounds. Findings go to stderr, where journald keeps them."""
    policy = load(config)
    stop = threading.Event()
    if rounds is None:  # a service; in a test the caller keeps its own handlers
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, lambda *_: stop.set())
    with history.Writer(history.path(policy.state_dir), history_bytes) as ring:
        monitor = Monitor(policy, ring, interval_s, allowance_bytes)
        try:
            while not stop.is_set():
                monitor.look()
                rounds = None if rounds is None else rounds - 1
                if rounds == 0:
                    break
                stop.wait(interval_s)
        finally:
            monitor.collector.close()


class Monitor:
    """What is remembered from one look to the next."""

    def __init__(self, policy: Policy, ring: history.Writer, interval_s: float, allowance_bytes: int) -> None:
        self.collector = Collector(policy)
        self._policy = policy
        self._ring = ring
        self._interval_s = interval_s
        self._allowance_bytes = allowance_bytes
        self._charges = Charges(policy.state_dir, interval_s)
        self._tracks: dict[Key, Track] = {}
        self._troubles: frozenset[tuple[str, str]] = frozenset()

    def look(self) -> None:
        """One round. What cannot be read or written this time is said once, and tried again at the next."""
        try:
            sample = self.collector.sample()
            found = truth.suspicions(sample, self._allowance_bytes)
            tracks = truth.step(self._tracks, found, [one.id for one in sample.containers])
            flat = rows(sample, truth.raised(tracks))
            self._ring.append(flat)
            self._charges.look(sample, flat)
            status.write(self._policy.state_dir, tracks, self._interval_s)
            for line in sick.leave_out(self._policy, self.collector.failures()):
                output.message(f"vgpu: {line}")
        except (VgpuError, OSError) as error:
            self._say_troubles(frozenset({("this round", str(error))}))
            return
        self._say_troubles(frozenset(sample.troubles))
        self._say_changes(sample, tracks)
        self._tracks = tracks

    def _say_changes(self, sample: Sample, tracks: Mapping[Key, Track]) -> None:
        """A finding raised or dropped: a line on stderr, and one in the audit log."""
        names = {one.id: one.name for one in sample.containers}
        for key in sorted({*self._tracks, *tracks}):
            before, now = self._tracks.get(key, Track()).raised, tracks.get(key, Track()).raised
            if before == now:
                continue
            detail = tracks[key].detail if now else "no longer seen, or the container has ended"
            output.message(f"vgpu: {key.kind}: {names.get(key.container, key.container)}: {detail}")
            event = "flag" if now else "unflag"
            audit.append(self._policy.log_dir, event, key.container, kind=key.kind, gpu=key.gpu, detail=detail)

    def _say_troubles(self, troubles: frozenset[tuple[str, str]]) -> None:
        for part, what in sorted(troubles - self._troubles):
            output.message(f"vgpu: {part}: {what}")
        self._troubles = troubles
