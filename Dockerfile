# The nablad server in a container, on a CPU or on an NVIDIA GPU. docs/operating.md says how to run it.
#
#   docker build -t nablad .                                              CPU
#   docker build -t nablad:gpu --build-arg EXTRAS=service,cuda .          GPU: JAX brings its own CUDA libraries
#   docker build -t nablad --build-arg BASE_IMAGE=debian:bookworm-slim .  any Debian or Ubuntu with Python >= 3.11
ARG BASE_IMAGE=python:3.12-slim


# First stage: a virtual environment with everything the server needs.
FROM ${BASE_IMAGE} AS build

# Bases that are not Python's own often have no Python, or one that cannot make virtual environments.
RUN python3 -c 'import ensurepip' 2>/dev/null || { \
        apt-get update \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv \
        && apt-get clean && rm -rf /var/lib/apt/lists/*; \
    }
RUN python3 -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nablad needs Python 3.11: take another BASE_IMAGE")'

ENV PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/nablad
WORKDIR /build

# JAX and its kin, before any source: this layer is made anew only when pyproject.toml or EXTRAS changes.
ARG EXTRAS=service
COPY docker/requirements.py docker/
COPY pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/nablad/bin/python docker/requirements.py "${EXTRAS}" > requirements.txt \
    && /opt/nablad/bin/pip install -r requirements.txt

COPY README.md LICENSE ./
COPY client client
COPY models models
COPY service service
# Installers have no work left in the finished image, so they do not travel there. `pip check` after the first of
# them has gone proves that nothing leant on it.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/nablad/bin/pip install --no-deps . \
    && /opt/nablad/bin/pip uninstall -y setuptools \
    && /opt/nablad/bin/pip check \
    && /opt/nablad/bin/pip uninstall -y pip


# Second stage: the same base, that environment and nothing else.
FROM ${BASE_IMAGE}

LABEL org.opencontainers.image.title="nablad" \
      org.opencontainers.image.description="Gradients of losses that contain derivatives, over HTTP" \
      org.opencontainers.image.licenses="Apache-2.0"

RUN command -v python3 >/dev/null || { \
        apt-get update \
        && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 \
        && apt-get clean && rm -rf /var/lib/apt/lists/*; \
    }

# The user owns three folders and no code. Libraries that write to a home write to the cache.
# /models is the repository, /training has the saves of sessions and runs: hosted models and training outlive
# the container if these folders are volumes.
RUN groupadd --gid 10001 nablad \
    && useradd --uid 10001 --gid nablad --no-create-home --home-dir /var/cache/nablad \
        --shell /usr/sbin/nologin nablad \
    && install -d -o nablad -g nablad -m 0700 /var/cache/nablad \
    && install -d -o nablad -g nablad -m 0755 /models /training

COPY --from=build /opt/nablad /opt/nablad
COPY docker/healthcheck.py /opt/nablad/healthcheck.py

# pip compiled the bytecode already, and the root file system may be read-only.
ENV PATH=/opt/nablad/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1
# Compiled programs outlive the container if this folder is a volume. Who may write here may run code in the
# server: never share it with anyone you would not give a shell.
ENV JAX_COMPILATION_CACHE_DIR=/var/cache/nablad/jax
# Empty, `-e NABLAD_REPOSITORY=`, it keeps models in memory only; likewise the other, and nothing is saved.
ENV NABLAD_REPOSITORY=/models \
    NABLAD_CHECKPOINTS=/training
# Bases without CUDA do not say what they want of the driver. Without a GPU this does nothing.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
# A container's loopback is its own: on 127.0.0.1 nobody outside could call. Listening everywhere is safe as long
# as the container has a network of its own, since then only published ports can be reached. It is unsafe with
# `--network host`, where it means every address of the machine (set NABLAD_HOST=127.0.0.1 there), and
# `-p 8421:8421` publishes to the whole network: there is no password, so prefer `-p 127.0.0.1:8421:8421`.
ENV NABLAD_HOST=0.0.0.0

# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /models
EXPOSE 8421

HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-IS", "/opt/nablad/healthcheck.py"]

# The exec form: signals reach the server itself. Options of `nablad serve` may follow the image's name.
ENTRYPOINT ["nablad", "serve"]
