"""python -m artefacts.manifests: renders the Helm chart as plain manifests, packaging/kubernetes/vgpu.yaml.

Rendered by Helm's own code (the Python package helm-python-sdk, `make chart` installs it). The file says the digest of
the chart that it was made of, so that a test can tell without Helm whether it is out of date.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

CHART = Path(__file__).resolve().parents[1] / "helm/vgpu"
PLAIN = Path(__file__).resolve().parents[1] / "kubernetes/vgpu.yaml"
NAME, NAMESPACE = "vgpu", "vgpu-system"
_HEAD = """\
# The chart packaging/helm/vgpu with its own values, rendered by `make chart`; change the chart, not this file.
# kubectl apply -f vgpu.yaml; then label nodes: kubectl label node NODE vgpu.dev/node=true
# chart: sha256:{digest}
---
apiVersion: v1
kind: Namespace
metadata:
  name: {namespace}
  labels: # the installer writes into the node's files
    pod-security.kubernetes.io/enforce: privileged
"""


def digest() -> str:
    """Of all files of the chart, their names included."""
    found = hashlib.sha256()
    for path in sorted(path for path in CHART.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(CHART)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def render(values: dict[str, Any] | None = None) -> dict[str, str]:
    """Template -> YAML, without what is for people. Raises Helm's errors for values that the schema refuses."""
    from helm_python import chart  # type: ignore[import-not-found,unused-ignore]

    with chart.Chart.load(CHART) as loaded:
        loaded.validate_schema(values)
        found: dict[str, str] = loaded.render(values=values, name=NAME, namespace=NAMESPACE)
    return {name: text.strip("\n") for name, text in found.items() if name.endswith(".yaml") and text.strip()}


def plain() -> str:
    documents = [f"---\n{text.removeprefix('---').strip()}\n" for _, text in sorted(render().items())]
    return _HEAD.format(digest=digest(), namespace=NAMESPACE) + "".join(documents)


if __name__ == "__main__":
    PLAIN.write_text(plain())
    print(PLAIN)
