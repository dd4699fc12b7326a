# Two images, without root, for a read-only file system; docs/container.md says how to run them:
#     docker build -t unet-deploy .                        for CPUs
#     docker build -t unet-deploy:cuda --target cuda .     for NVIDIA GPUs, and CPUs
# In both, /opt/unet is a virtual environment with the commands, unet-serve among them.

ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/unet && mkdir /cache
WORKDIR /src
COPY constraints.txt requirements-cpu.txt ./

# The packages are installed before the sources come, so that a change of the sources does not fetch them again.
FROM source AS cpu-packages
RUN python -m pip --python /opt/unet install -c constraints.txt -r requirements-cpu.txt
COPY . .
RUN python -m pip --python /opt/unet install --no-deps .

FROM source AS cuda-packages
ARG EXTRAS=gpu,serve
RUN python -m pip --python /opt/unet install -c constraints.txt 'onnxruntime-gpu[cuda,cudnn]'
COPY . .
RUN python -m pip --python /opt/unet install -c constraints.txt ".[${EXTRAS}]"

# A user of this number needs no entry in /etc/passwd. /cache keeps TensorRT's engines where a volume is mounted on it.
FROM python:${PYTHON}-slim AS service
ENV PATH=/opt/unet/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/cache PYTHONUNBUFFERED=1
COPY --from=source --chown=10001:10001 /cache /cache
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/healthz', timeout=9)"]
CMD ["unet-serve", "/models/model.onnx", "--host", "0.0.0.0", "--port", "8000"]

FROM service AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=cuda-packages /opt/unet /opt/unet

FROM service AS cpu
COPY --from=cpu-packages /opt/unet /opt/unet
