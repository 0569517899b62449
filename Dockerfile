# An image with the command `vlm`, and CUDA by the torch package of Python.
#
#   docker build -t vlm .
#   docker run --gpus all -v "$PWD:/data" vlm pretrain                # trains the demo
#   docker run --gpus all -v "$PWD:/data" -p 8000:8000 vlm serve --host 0.0.0.0 out
#
# Paths are relative to the folder that is mounted at /data, and what a run writes belongs to root.
# The host needs the NVIDIA driver and its container toolkit. One process and one GPU: the library
# for NCCL is made by a checkout (docs/multi-gpu.md).

FROM rust:1-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-pip python3-venv
WORKDIR /src
COPY . .
# The program is linked against the libtorch for the CPU, and takes CUDA from the torch package that
# it finds when it starts.
RUN cargo xtask setup --cpu && cargo xtask dist

# The same Debian release as above, for the same C library.
FROM python:3.11-slim-bookworm
COPY --from=build /src/dist/*.whl /tmp/
RUN pip install --no-cache-dir /tmp/*.whl && rm /tmp/*.whl
# The images of the demo are kept in /data, too, for the next container.
ENV XDG_CACHE_HOME=/data/.cache
WORKDIR /data
ENTRYPOINT ["vlm"]
