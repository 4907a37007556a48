# syntax=docker/dockerfile:1
# An image that serves one class. As it stands it serves /app/transform.py; see deploy/README.md for the other ways.
ARG PYTHON_VERSION=3.13
ARG BASE_IMAGE=python:${PYTHON_VERSION}-slim

FROM ${BASE_IMAGE} AS build
# PACKAGES: what the class needs from PyPI, separated by commas or spaces. Baked in, they cost no time at every start.
ARG PACKAGES=""
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY etl_server ./etl_server
# hadolint ignore=SC2086
RUN python3 -m venv /opt/etl-server \
    && /opt/etl-server/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && IFS=', ' \
    && /opt/etl-server/bin/python -m pip install --no-cache-dir "$(echo /wheels/*.whl)[s3]" $PACKAGES

FROM ${BASE_IMAGE}
# OS_PACKAGES: what the class needs from apt. Only here: the user that serves is not root, and cannot install them later.
ARG OS_PACKAGES=""
# hadolint ignore=DL3008,SC2086
RUN if [ -n "$OS_PACKAGES" ]; then \
        IFS=', ' \
        && apt-get update \
        && apt-get install --yes --no-install-recommends $OS_PACKAGES \
        && rm -rf /var/lib/apt/lists/*; \
    fi \
    && mkdir -p /app && chown 10001:10001 /app
COPY --from=build /opt/etl-server /opt/etl-server

LABEL org.opencontainers.image.title="etl-server" \
      org.opencontainers.image.description="Serves a transform of objects, written as one Python class, next to the data" \
      org.opencontainers.image.licenses="MIT"
ENV PATH=/opt/etl-server/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('ETL_PORT', '8000') + '/health', timeout=4)"]
# No shell in between: SIGTERM reaches the server, which finishes what is in flight and exits with 0.
ENTRYPOINT ["etl-server"]
CMD ["serve", "/app/transform.py"]
