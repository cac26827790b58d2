# The robot's side: gwp.client and gwp.protocol, with numpy, msgpack and websockets. From the root of the repository:
#   docker build -f clusters/image/client.Dockerfile -t registry.example.com/gwp-client:0.1.0 .
FROM python:3.11-slim-bookworm

WORKDIR /opt/gwp
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY gwp gwp

# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir --quiet --upgrade pip
RUN python -m pip install --no-cache-dir --quiet -c constraints.txt .

RUN groupadd --gid 1000 robot \
    && useradd --uid 1000 --gid 1000 --create-home robot
USER 1000:1000
WORKDIR /home/robot

# What runs in it is the robot's own program, which knows best how it is.
HEALTHCHECK NONE
CMD ["python", "-c", "import gwp.client; print(gwp.client.__doc__)"]
