# The framework on a CUDA base, from the same lock as on a laptop. Build: docker build -t rlvr .
# Run: docker run --gpus all -v "$PWD/runs:/workspace/rlvr/runs" rlvr rlvr train recipes/quickstart.yaml
FROM nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    VIRTUAL_ENV=/opt/rlvr \
    PATH=/opt/rlvr/bin:$PATH

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# bubblewrap is the sandbox of the reward `code`; the container must be allowed namespaces (docs/sandbox.md).
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace/rlvr
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY rlvr ./rlvr
COPY rewards ./rewards

# torch first and by its exact version, so that nothing else pulls another build of it.
RUN python3 -m venv "$VIRTUAL_ENV" \
    && pip install "$(grep '^torch==' requirements.lock)" \
    && pip install -c requirements.lock -e ".[deepspeed]"

COPY recipes ./recipes
COPY scripts ./scripts

RUN rlvr doctor && rlvr recipes validate recipes

CMD ["rlvr", "doctor"]
