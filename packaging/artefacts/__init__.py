"""Makes and checks what is given away: wheel, source archive, their bills of materials.

parts.py         builds all that is compiled, for one architecture
build_hook.py    puts it into the wheel (the build backend loads it, see pyproject.toml)
archive.py       the files of an artefact: wheel, source archive, .deb, installed prefix
closure.py       does every ELF file in it find what it needs, and is it hardened? Rules: closure.yaml
sbom.py          bill of materials, CycloneDX
context.py       what container images are built from
manifests.py     the Helm chart as plain manifests
reproducible.py  are the bytes the same, wherever and whenever it is built?

`PYTHONPATH=.:packaging python -m artefacts.closure FILE…`; docs/packaging.md tells all of it.
"""
