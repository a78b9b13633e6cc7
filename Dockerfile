# Translate on a CPU:
#     docker build -t cyclegan-batch .
#     docker run --rm -v "$PWD:/data" cyclegan-batch translate clip.mp4 night.mp4 -m day2night.onnx
# The pip lines were run in a fresh environment; the image was not built.
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cyclegan_batch cyclegan_batch
COPY train train
COPY export export
RUN pip install --no-cache-dir -c constraints.txt '.[cpu,openvino]'

WORKDIR /data
ENTRYPOINT ["cyclegan-batch"]
CMD ["--help"]
