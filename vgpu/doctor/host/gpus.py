"""What the GPUs are set to, by NVML's word: MIG, compute mode, persistence; and whether MPS stands between."""

from __future__ import annotations

from collections.abc import Iterator

from vgpu.doctor.finding import Result, Seen, found
from vgpu.doctor.host.machine import Host, Run

_COMPUTE_MODES = {1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}


def modes(host: Host) -> Iterator[Result]:
    from vgpu.monitor.nvml import Nvml  # pynvml: 35 ms

    with Nvml(host.policy) as nvml:
        found_ones = nvml.modes()
    for gpu in found_ones:
        name = f"GPU {gpu.index}"
        if gpu.mig:
            remedy = f"nvidia-smi -i {gpu.index} -mig 0"
            yield found("VGPU-DRV-009", name, f"{gpu.uuid} is divided by MIG", remedy=remedy)
        if gpu.compute_mode in _COMPUTE_MODES:
            evidence = f"{gpu.uuid}: compute mode {_COMPUTE_MODES[gpu.compute_mode]}"
            yield found("VGPU-DRV-010", name, evidence, remedy=f"nvidia-smi -i {gpu.index} -c DEFAULT")
        if gpu.persistence is False and not any(True for _ in host.processes("nvidia-persistenced")):
            evidence = f"{gpu.uuid}: persistence mode is off, and no nvidia-persistenced runs"
            yield found("VGPU-DRV-011", name, evidence, remedy=f"nvidia-smi -i {gpu.index} -pm 1")
    yield Seen(f"{len(found_ones)} GPUs answer")


def mps(host: Host) -> Iterator[Result]:
    running = list(host.processes("nvidia-cuda-mps-control", "nvidia-cuda-mps-server"))
    for pid, command in running[:1]:
        yield found("VGPU-DRV-012", f"process {pid}", f"{command[0] or 'nvidia-cuda-mps'} runs")
    if not running:
        yield Seen("no MPS")


CHECKS: tuple[tuple[str, str, Run], ...] = (("driver", "GPUs", modes), ("driver", "MPS", mps))
