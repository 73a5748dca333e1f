"""A client of the Container Runtime Interface: asks a containerd as the kubelet does.

The messages are compiled from tests/fixtures/cri.proto when this is first imported.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from tests.harness.containerd import Containerd

_messages, _services = grpc.protos_and_services("tests/fixtures/cri.proto")
RUNNING, EXITED = _messages.CONTAINER_RUNNING, _messages.CONTAINER_EXITED


class Refused(Exception):
    """What the kubelet would write into the pod's events."""


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    output: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A running pod sandbox. config: with which each of its containers is created as well."""

    client: Client
    id: str
    config: Any

    def create(
        self,
        name: str,
        image: str,
        command: Sequence[str],
        *,
        annotations: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
        cdi: Sequence[str] = (),
    ) -> str:
        """A container that is not started yet; its id."""
        config = _messages.ContainerConfig(
            metadata=_messages.ContainerMetadata(name=name),
            image=_messages.ImageSpec(image=image),
            command=command,
            envs=[_messages.KeyValue(key=key, value=value) for key, value in (env or {}).items()],
            annotations=annotations,
            labels={"io.kubernetes.container.name": name},
            log_path=f"{name}.log",
            linux=_messages.LinuxContainerConfig(
                security_context=_messages.LinuxContainerSecurityContext(namespace_options=_host_network())
            ),
            CDI_devices=[_messages.CDIDevice(name=device) for device in cdi],
        )
        made = self.client.call("CreateContainer", pod_sandbox_id=self.id, config=config, sandbox_config=self.config)
        return str(made.container_id)

    def start(self, *args: Any, **options: Any) -> str:
        """`create`, and the start. Raises Refused; what was created is removed then."""
        container = self.create(*args, **options)
        try:
            self.client.call("StartContainer", container_id=container)
        except Refused:
            self.client.remove(container)
            raise
        return container

    def run(self, *args: Any, **options: Any) -> Result:
        """`start`, and the end: exit code, and what the program wrote. Raises Refused."""
        container = self.start(*args, **options)
        try:
            code = self.client.wait(container)
            return Result(code, self.log(args[0]))
        finally:
            self.client.remove(container)

    def log(self, name: str) -> str:
        """What a container's program wrote, without what the CRI puts before each line: time, stream, F or P."""
        with open(f"{self.config.log_directory}/{name}.log") as lines:
            return "".join(line.split(" ", 3)[3] for line in lines)

    @property
    def name(self) -> str:
        return str(self.config.metadata.name)

    def end(self) -> None:
        """All of its containers, too."""
        self.client.call("StopPodSandbox", pod_sandbox_id=self.id)
        self.client.call("RemovePodSandbox", pod_sandbox_id=self.id)


@dataclass(frozen=True, slots=True)
class Client:
    daemon: Containerd
    channel: Any

    def call(self, method: str, **fields: Any) -> Any:
        """One call of the interface. Raises Refused with the daemon's own words."""
        service = "ImageService" if method == "ImageStatus" else "RuntimeService"
        function = getattr(getattr(_services, f"{service}Stub")(self.channel), method)
        known = _messages.DESCRIPTOR.services_by_name[service].methods_by_name[method]
        try:
            return function(getattr(_messages, known.input_type.name)(**fields), timeout=60)
        except grpc.RpcError as error:
            raise Refused(f"{method}: {error.details()}") from None

    def pod(self, handler: str, annotations: Mapping[str, str] | None = None) -> Pod:
        """On the host's network, which spares a network plugin. handler: as a RuntimeClass names it, "" for none."""
        name = f"pod-{uuid.uuid4().hex[:8]}"
        logs = self.daemon.folder / "logs" / name
        logs.mkdir(parents=True)
        config = _messages.PodSandboxConfig(
            metadata=_messages.PodSandboxMetadata(name=name, uid=uuid.uuid4().hex, namespace="research"),
            log_directory=str(logs),
            labels={"io.kubernetes.pod.name": name},
            annotations=annotations,
            linux=_messages.LinuxPodSandboxConfig(
                cgroup_parent=f"{self.daemon.cgroup}/{name}",
                security_context=_messages.LinuxSandboxSecurityContext(namespace_options=_host_network()),
            ),
        )
        made = self.call("RunPodSandbox", config=config, runtime_handler=handler)
        return Pod(self, str(made.pod_sandbox_id), config)

    def wait(self, container: str, timeout: float = 60) -> int:
        """The exit code of a container that ends by itself."""
        end = time.monotonic() + timeout
        while (status := self.status(container)).state != EXITED:
            if time.monotonic() > end:
                raise TimeoutError(f"container {container[:12]} still runs after {timeout} s")
            time.sleep(0.05)
        return int(status.exit_code)

    def status(self, container: str) -> Any:
        return self.call("ContainerStatus", container_id=container).status

    def handlers(self) -> dict[str, str]:
        """Pod sandbox -> its runtime handler."""
        return {item.id: item.runtime_handler for item in self.call("ListPodSandbox").items}

    def exec(self, container: str, *command: str) -> Result:
        done = self.call("ExecSync", container_id=container, cmd=command, timeout=30)
        return Result(done.exit_code, (done.stdout + done.stderr).decode())

    def stop(self, container: str) -> None:
        self.call("StopContainer", container_id=container, timeout=0)

    def remove(self, container: str) -> None:
        self.call("RemoveContainer", container_id=container)

    def await_ready(self, timeout: float = 30) -> None:
        """Until the plugin answers: the daemon does so earlier."""
        end = time.monotonic() + timeout
        while True:
            try:
                self.call("Version")
                return
            except Refused:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def await_image(self, tag: str, timeout: float = 30) -> None:
        """Until the plugin has heard of an image that was imported behind its back."""
        end = time.monotonic() + timeout
        while not self.call("ImageStatus", image=_messages.ImageSpec(image=tag)).HasField("image"):
            if time.monotonic() > end:
                raise TimeoutError(f"the CRI plugin does not know {tag} after {timeout} s")
            time.sleep(0.05)


@contextlib.contextmanager
def client(daemon: Containerd) -> Iterator[Client]:
    with grpc.insecure_channel(f"unix://{daemon.address}") as channel:
        yield Client(daemon, channel)


def _host_network() -> Any:
    return _messages.NamespaceOption(network=_messages.NODE)
