# lsa in an image. For the CPU (default):   docker build -t lsa .
# For CUDA:  docker build -t lsa:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# Use:       docker run --rm -v "$PWD":/work lsa audit model.pt        (with --gpus all for CUDA)
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# First and alone: this layer is large, and changes only with the index.
RUN python -m venv /opt/lsa && /opt/lsa/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.10" "torchvision>=0.25"
COPY pyproject.toml README.md LICENSE /source/
COPY lsa_cli /source/lsa_cli
RUN /opt/lsa/bin/pip install --no-cache-dir /source

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 1000 lsa
COPY --from=build /opt/lsa /opt/lsa
ENV PATH=/opt/lsa/bin:$PATH PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["lsa"]
CMD ["--help"]
