# Installs vgpu on the node that it runs on, see node.py. Built without a network, as exporter.Dockerfile.
# Root of the node, by intention: it writes into the node's files, which are mounted at /host.
# BASE must have the Python of the nodes, 3.11 on Debian 12: they get the packages that are put together here.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
COPY wheels /wheels
RUN python3 "$(echo /wheels/pip-*.whl)/pip" install --no-index --no-cache-dir --no-compile --find-links /wheels \
    --disable-pip-version-check --root-user-action ignore --target /site "vgpu-runtime[exporter]"

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vgpu-installer" \
      org.opencontainers.image.description="Installs the vgpu container runtime on a node" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=packages /site /opt/vgpu-site
COPY node.py /opt/vgpu-node.py
ENV PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["python3", "/opt/vgpu-node.py"]
CMD ["install"]
