"""vgpu export: the admin's policy as settings of HAMi's chart or of Volcano's vGPU. What those cannot say is told."""

from __future__ import annotations

from oci_hook.errors import HostError, shown
from oci_hook.records import Policy
from vgpu import config as policies
from vgpu import output

TARGETS = ("hami", "volcano")
_CHOICES = ("binpack", "spread")  # both have these two, by these names
_SPLIT = 10  # both have a number of slices per GPU, and 10 unless told otherwise

_HAMI = """\
# HAMi's Helm values; made by vgpu export
{notes}devicePlugin:
  deviceSplitCount: {split}
  deviceMemoryScaling: {memory:g}
scheduler:
  defaultSchedulerPolicy:
    nodeSchedulerPolicy: {placement}
    gpuSchedulerPolicy: {placement}
"""
_VOLCANO = """\
# Volcano's scheduler and vGPU device plugin: two ConfigMaps to merge into yours; made by vgpu export
{notes}apiVersion: v1
kind: ConfigMap
metadata:
  name: volcano-scheduler-configmap
  namespace: volcano-system
data:
  volcano-scheduler.conf: |
    actions: "enqueue, allocate, backfill"
    tiers:
    - plugins:
      - name: priority
      - name: gang
      - name: predicates
      - name: deviceshare
        arguments:
          deviceshare.VGPUEnable: true
          deviceshare.SchedulePolicy: {placement}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: volcano-vgpu-device-config
  namespace: kube-system
data:
  device-config.yaml: |
    nvidia:
      deviceSplitCount: {split}
      deviceMemoryScaling: {memory:g}
      deviceCoreScaling: {cores:g}
"""


def run(config: str, target: str) -> None:
    """Prints YAML; what could not be said is a comment in it, and on stderr."""
    if target not in TARGETS:
        what = f"--as={shown(target)}: there is no such target"
        raise HostError("VGPU-CFG-003", what, remedy=f"choose {' or '.join(TARGETS)}")
    text, notes = translate(policies.load(config), target)
    print(text, end="")
    for note in notes:
        output.message(f"vgpu: not exported: {note}")


def translate(policy: Policy, target: str) -> tuple[str, list[str]]:
    """The YAML for `target`, and what it cannot say."""
    notes = list(_unsaid(policy, target))
    text = (_HAMI if target == "hami" else _VOLCANO).format(
        notes="".join(f"# not exported: {note}\n" for note in notes),
        placement=policy.placement if policy.placement in _CHOICES else "binpack",
        split=policy.max_slices or _SPLIT,
        memory=policy.overcommit_memory,
        cores=policy.overcommit_cores,
    )
    return text, notes


def _unsaid(policy: Policy, target: str) -> list[str]:
    notes = []
    if policy.placement not in _CHOICES:
        notes.append(f"placement: {policy.placement}; binpack is written in its place")
    if policy.max_slices is None:
        notes.append(f"no limit of slices on a GPU; {_SPLIT} is written, the usual one there")
    if target == "hami" and policy.overcommit_cores != 1:
        notes.append(f"overcommit.cores: {policy.overcommit_cores:g}; the chart has no value for it that we know")
    if policy.max_memory_bytes is not None:
        notes.append(f"max.memory: {output.size(policy.max_memory_bytes)}; use a LimitRange on its memory resource")
    if policy.max_cores_percent != 100:
        notes.append(f"max.cores: {policy.max_cores_percent}; use a LimitRange on its cores resource")
    if policy.max_gpus is not None:
        notes.append(f"max.gpus: {policy.max_gpus}; use a LimitRange on its GPU resource")
    if policy.burst != "hard":
        notes.append(f"burst: {policy.burst}; it is set per container there")
    if policy.quotas:
        notes.append("quotas; use a ResourceQuota per namespace")
    return notes
