# The image of the reporter and the proxy in compose-otel.yml, and of its first step, which prepares volumes.
# Two stages: pip and the sources stay behind. UID and GID are those of the user who owns ./secrets.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
COPY requirements-image.lock .
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --require-hashes -r requirements-image.lock
COPY pyproject.toml README.md LICENSE otel-config.yaml compose-otel.yml ./
COPY data data
COPY notebooks notebooks
COPY vllm_capacity vllm_capacity
COPY vllm_simulator vllm_simulator
RUN /opt/venv/bin/pip install --no-deps --no-build-isolation .

FROM python:3.11.14-slim-bookworm
ARG UID=1000
ARG GID=1000
# A volume takes the owner of the folder that it is first mounted on: these four are the stack's.
RUN mkdir -p /stack/data /stack/staging /stack/queue /stack/reports /stack/windows \
    && chown -R "$UID:$GID" /stack
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
WORKDIR /tmp
USER $UID:$GID
CMD ["vllm-capacity", "--help"]
