"""vgpu exporter: metrics for Prometheus, served or written to a file. Each scrape looks at the host anew."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from oci_hook import inventory
from oci_hook.errors import HostError, VgpuError
from oci_hook.records import Policy
from vgpu import output
from vgpu.config import load
from vgpu.monitor import status
from vgpu.monitor.collect import Collector
from vgpu.monitor.sample import Sample

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric


def run(config: str, *, address: tuple[str, int], textfile: str | None, max_containers: int) -> None:
    """Serves until SIGTERM or SIGINT, or writes `textfile` once. Raises HostError VGPU-MON-004."""
    try:
        import prometheus_client
    except ImportError:
        remedy = "install it beside vgpu: pip install prometheus-client"
        raise HostError("VGPU-MON-004", "the Python package prometheus-client is missing", remedy=remedy) from None
    source = Source(load(config), max_containers)
    registry = prometheus_client.CollectorRegistry()
    registry.register(source)
    try:
        if textfile is not None:
            write(registry, textfile)
            return
        _serve(registry, *address)
    finally:
        source.close()


class Source:
    """What prometheus_client asks for metrics, one scrape at a time."""

    def __init__(self, policy: Policy, max_containers: int) -> None:
        self._policy = policy
        self._max_containers = max_containers
        self._collector = Collector(policy)
        self._errors: Counter[str] = Counter({"ledger": 0, "nvml": 0, "usage": 0})
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """Nothing: else a scrape would be made at once to find the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        from vgpu.monitor import metrics

        with self._lock:
            sample = self._sample()
            host = metrics.Host(
                driver_version=self._driver_version(),
                overcommit_memory=self._policy.overcommit_memory,
                overcommit_cores=self._policy.overcommit_cores,
                errors=dict(self._errors),
            )
        yield from metrics.metrics(sample, status.read(self._policy.state_dir), host, self._max_containers)

    def close(self) -> None:
        self._collector.close()

    def _sample(self) -> Sample:
        """A host that cannot be read at all is an empty sample, and counted: the scrape itself must go on."""
        try:
            sample = self._collector.sample()
        except VgpuError as error:
            sample = Sample(0, 0, (), (), (("ledger", str(error)),), self._policy.simulate_gpus > 0)
        self._errors.update(part for part, _ in sample.troubles)
        return sample

    def _driver_version(self) -> str:
        try:
            return inventory.load(self._policy).driver_version
        except VgpuError:  # stale or missing: the next start of a container makes it
            return ""


def write(registry: CollectorRegistry, path: str) -> None:
    """One scrape, all or nothing, for node_exporter's textfile collector. Raises HostError VGPU-MON-004."""
    from prometheus_client import generate_latest

    temporary = f"{path}.{os.getpid()}"
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "wb") as stream:
            stream.write(generate_latest(registry))
        os.rename(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise _refused(f"--textfile {path}", error, "name a file in a folder that can be written") from None


def _serve(registry: CollectorRegistry, host: str, port: int) -> None:
    import prometheus_client

    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        server, thread = prometheus_client.start_http_server(port, host, registry)
    except (OSError, UnicodeError) as error:
        raise _refused(f"--listen {shown}", error, "choose an address of this host and a free port") from None
    output.message(f"vgpu: metrics on http://{shown.rpartition(':')[0]}:{server.server_port}/metrics")
    stop.wait()
    server.shutdown()
    thread.join()


def _refused(what: str, error: Exception, remedy: str) -> HostError:
    why = (
        os.strerror(error.errno).lower()
        if isinstance(error, OSError) and error.errno and error.errno > 0
        else "unknown"
    )
    return HostError("VGPU-MON-004", f"{what}: {why}", remedy=remedy)
