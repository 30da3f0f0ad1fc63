# gpugrad on a GPU. Build from the repository root: docker build -f docker/cuda.Dockerfile -t gpugrad-cuda .
# The CUDA libraries come with the Python wheels; the host provides the driver (run with --gpus all).
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/gpugrad
COPY . .
RUN pip install --no-cache-dir ".[cuda13,text,yaml]"
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /data
ENTRYPOINT ["gpugrad"]
CMD ["train"]
