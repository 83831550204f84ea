# CPU:   docker build -t ft .
# CUDA:  docker build -t ft --build-arg TORCH=cu130 .     then  docker run --gpus all …
# Use:   docker run --rm -v "$PWD:/work" ft run mtnt_lora --max-steps 4
FROM python:3.11-slim
ARG TORCH=cpu

# Triton compiles its launchers with the system's C compiler
RUN if [ "$TORCH" != cpu ]; then \
      apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi

COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt --extra-index-url "https://download.pytorch.org/whl/$TORCH" \
      "/src[embedded,gguf]"

RUN useradd --create-home --uid 1000 ft
USER ft
WORKDIR /work
ENTRYPOINT ["ft"]
CMD ["--help"]
