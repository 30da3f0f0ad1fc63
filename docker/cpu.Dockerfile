# gpugrad on NumPy. Build from the repository root: docker build -f docker/cpu.Dockerfile -t gpugrad .
FROM python:3.12-slim
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/gpugrad
COPY . .
RUN pip install --no-cache-dir ".[text,yaml]"
WORKDIR /data
ENTRYPOINT ["gpugrad"]
CMD ["train"]
