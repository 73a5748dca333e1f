# Shows the slice that its container has got: docker run --rm --runtime=vgpu --label vgpu.memory=8GiB vgpu-demo
# Needs nothing but Python and glibc; no user of the host, and nothing to write to:
#   docker build --network none -f demo.Dockerfile -t vgpu-demo dist/images
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vgpu-demo" \
      org.opencontainers.image.description="Shows the GPU slice that its container has got" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY slice.py /slice.py
USER 65534:65534
ENTRYPOINT ["python3", "-I", "/slice.py"]
