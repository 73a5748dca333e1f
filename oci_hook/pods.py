"""What an engine says of a pod's containers, by annotations in their specs. Pure; docs/labels.md, "Pods".

containerd's CRI plugin has names of its own. CRI-O has others, some of which are the kubelet's labels; Podman marks the
sandbox as CRI-O does.
"""

from __future__ import annotations

from oci_hook.values import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_KIND = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_NAMES = (
    ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.container-name"),
    ("io.kubernetes.pod.namespace", "io.kubernetes.pod.name", "io.kubernetes.container.name"),
)
_IMAGE = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName")


def is_sandbox(annotations: Mapping[str, str]) -> bool:
    """Whether it is the container that only holds the pod's namespaces. The pod's annotations are its own, too, and
    no request: what they ask for is meant for the others."""
    return any(annotations.get(name) == "sandbox" for name in _KIND)


def described(annotations: Mapping[str, str]) -> tuple[str, str]:
    """(namespace/pod/container, image) of a pod's container; empty where the engine does not say."""
    name = "/".join(part for part in _found(annotations) if part)
    image = next((annotations[one] for one in _IMAGE if one in annotations), "")
    return name, image


def asked(annotations: Mapping[str, str]) -> tuple[str, dict[str, str], dict[str, str]]:
    """(name, own, shared): the container's name in its pod, "" for none; what `vgpu.<setting>/<name>` says, without the
    name; what the pod says for all.

    A pod that names one of its containers asks for those alone that it names: a sidecar must not take a slice, nor fail
    for the want of a C library.
    """
    ours = {name: text for name, text in annotations.items() if name.startswith("vgpu.")}
    container = _found(annotations)[2]
    named = {name: text for name, text in ours.items() if "/" in name} if container else {}
    own = {name.partition("/")[0]: text for name, text in named.items() if name.partition("/")[2] == container}
    if named and not own:
        return container, {}, {}
    return container, own, {name: text for name, text in ours.items() if name not in named}


def _found(annotations: Mapping[str, str]) -> tuple[str, str, str]:
    """Namespace, pod and container, by the first engine's names that say a container's."""
    for names in _NAMES:
        if names[2] in annotations:
            return annotations.get(names[0], ""), annotations.get(names[1], ""), annotations[names[2]]
    return "", "", ""
