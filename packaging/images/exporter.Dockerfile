# vgpu exporter: metrics of a node for Prometheus. Built without a network, from a context that `make images-context` makes:
#   docker build --network none -f exporter.Dockerfile -t vgpu-exporter dist/images
# Run with the host's process numbers, installation and state; as root, since the state folder is root's alone:
#   docker run --pid host --read-only --cap-drop ALL --security-opt no-new-privileges -p 9411:9411 \
#     -v /opt/vgpu:/opt/vgpu:ro -v /run/vgpu:/run/vgpu vgpu-exporter
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS packages
COPY wheels /wheels
RUN python3 "$(echo /wheels/pip-*.whl)/pip" install --no-index --no-cache-dir --no-compile --find-links /wheels \
    --disable-pip-version-check --root-user-action ignore --target /site "vgpu-runtime[exporter]"

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vgpu-exporter" \
      org.opencontainers.image.description="Metrics of a node's GPU slices, for Prometheus" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=packages /site /opt/vgpu-site
ENV PYTHONPATH=/opt/vgpu-site PYTHONDONTWRITEBYTECODE=1
EXPOSE 9411
ENTRYPOINT ["python3", "-m", "vgpu", "exporter"]
CMD ["--listen", ":9411", "--config", "/opt/vgpu/etc/config.yaml"]
