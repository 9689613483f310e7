# The framework for NVIDIA GPUs, from the same lock as on a laptop. docs/cluster.md has its size and what it needs.
#   docker build -t rlvr:0.1.0 --build-arg EXTRAS=deepspeed .
#   docker run --gpus all --shm-size 16g -v rlvr-runs:/workspace/rlvr/runs rlvr:0.1.0 rlvr train recipes/quickstart.yaml

# ---- builder: the virtual environment. With nvcc, for source distributions that compile.
FROM nvidia/cuda:13.0.1-devel-ubuntu24.04@sha256:7d2f6a8c2071d911524f95061a0db363e24d27aa51ec831fcccf9e76eb72bc92 AS builder

# Extras of pyproject.toml, comma-separated. Those that fit the lock: vllm wants other versions of some packages.
ARG EXTRAS=deepspeed

ENV DEBIAN_FRONTEND=noninteractive \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PATH=/opt/rlvr/bin:$PATH

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# torch first and by its exact version, so that nothing else pulls another build of it; alone in its layer, which is
# built again only when the lock changes.
WORKDIR /source
COPY requirements.lock ./
RUN python3 -m venv /opt/rlvr && pip install "$(grep '^torch==' requirements.lock)"

COPY pyproject.toml README.md LICENSE ./
COPY rlvr ./rlvr
COPY rewards ./rewards
RUN pip install -c requirements.lock ".[${EXTRAS}]"

# ---- what is shipped: the CUDA libraries without the compiler, the environment, the recipes.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04@sha256:c3fde347d52d578c84fd644bc177bc7ec333feaf11550d990da4084d7612e4c7

ENV DEBIAN_FRONTEND=noninteractive \
    PYTHONUNBUFFERED=1 \
    VIRTUAL_ENV=/opt/rlvr \
    PATH=/opt/rlvr/bin:$PATH

# bubblewrap is the sandbox of the reward `code`; the container must be allowed namespaces (docs/sandbox.md).
# g++ and python3-dev: DeepSpeed compiles its Adam for the CPU when it is first used, Triton its launchers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap g++ python3 python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --no-log-init --create-home --uid 10001 rlvr \
    && install -d -o rlvr -g rlvr /workspace/rlvr /workspace/rlvr/runs /home/rlvr/.cache /home/rlvr/.cache/huggingface

COPY --from=builder /opt/rlvr /opt/rlvr

WORKDIR /workspace/rlvr
COPY recipes ./recipes
COPY scripts ./scripts

# By number, so that Kubernetes can see that it is not root.
USER 10001

RUN rlvr doctor && rlvr recipes validate recipes

HEALTHCHECK --interval=30m --timeout=3m --start-period=3m CMD ["rlvr", "doctor"]

CMD ["rlvr", "doctor"]
