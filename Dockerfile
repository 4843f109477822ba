# An image with a GPU's PyTorch and the command hidiff:
#
#   docker build -t hidiff .
#   docker run --gpus all --shm-size=16g -v "$PWD":/work hidiff restore photo.jpg -o restored
#
# Without --gpus all it computes on the CPU. Loader processes hand batches over in /dev/shm, so
# training needs --shm-size.
FROM pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime

WORKDIR /opt/hidiff
COPY pyproject.toml setup.py README.md LICENSE ./
COPY hidiff hidiff
COPY options options
# The image's own torch and torchvision are within the ranges and stay.
RUN pip install --no-cache-dir . && \
    pip uninstall --yes opencv-python && pip install --no-cache-dir "opencv-python-headless>=4.13,<6"

WORKDIR /work
ENTRYPOINT ["hidiff"]
