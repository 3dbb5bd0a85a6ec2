# docker build -t quietserve .
# docker run --rm -p 8000:8000 quietserve                                                   the bundled checkpoint
# docker run --rm -p 8000:8000 -v "$PWD/models:/models:ro" quietserve serve my-checkpoint   one of yours
#
# Every flag of `quietserve serve` is also an environment variable: -e QUIETSERVE_MAX_NUM_SEQS=32.
#
# Build arguments:
#   EXTRAS="bnb ray"                         optional parts, separated by spaces: bnb is bitsandbytes, ray is for replicas on Ray Serve
#   PIP_INDEX_URL, PIP_EXTRA_INDEX_URL       a mirror, or an index with CPU builds of torch: without a GPU they save gigabytes
#   BASE                                     another base; it needs python3, 3.11 to 3.13, at one path in both stages
ARG BASE=python:3.11.14-slim-trixie

FROM ${BASE} AS build
ARG EXTRAS=""
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /src
COPY constraints.txt ./
# All versions, those of what builds our package too (which newer releases of pip read from the second variable).
ENV PATH=/opt/dependencies/bin:$PATH \
    PIP_CONSTRAINT=/src/constraints.txt \
    PIP_BUILD_CONSTRAINT=/src/constraints.txt \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# torch by its exact version, which on some indexes is the small CPU build, and without what only compiling against it needs.
RUN python3 -m venv /opt/dependencies \
    && pip install "$(grep '^torch==' constraints.txt)" \
    && rm -rf /opt/dependencies/lib/python3*/site-packages/torch/include \
              /opt/dependencies/lib/python3*/site-packages/torch/test \
              /opt/dependencies/lib/python3*/site-packages/torch/bin/protoc* \
              /opt/dependencies/lib/python3*/site-packages/torch/bin/test_*
# What we depend on, before our sources: a change of those builds, ships and pulls some eight megabytes.
COPY pyproject.toml ./
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = (project['optional-dependencies'][name] for name in '$EXTRAS'.split()); \
        print(*project['dependencies'], *sum(extras, []), sep='\n')" > requirements.txt \
    && pip install --requirement requirements.txt
COPY README.md LICENSE ./
COPY server server
COPY model model
COPY clients clients
RUN pip install --no-deps --target /opt/quietserve . \
    && pip uninstall --yes pip

FROM ${BASE}
LABEL org.opencontainers.image.title="quietserve" \
      org.opencontainers.image.description="An inference server, and the training package, for language models that think before every token" \
      org.opencontainers.image.licenses="Apache-2.0"
# Two empty folders: checkpoints are mounted at the first, what is downloaded goes to the second. For Ray also wget, with which KubeRay
# asks a pod whether it is ready; of no version, since the base's distribution keeps only its newest.
ARG EXTRAS=""
# hadolint ignore=DL3008
RUN useradd --no-log-init --create-home --uid 10001 quietserve \
    && install --directory /models \
    && install --directory --owner=quietserve --group=quietserve /cache \
    && case " $EXTRAS " in *" ray "*) \
        apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* ;; esac
COPY --from=build /opt/dependencies /opt/dependencies
COPY --from=build /opt/quietserve /opt/quietserve
ENV PATH=/opt/quietserve/bin:/opt/dependencies/bin:$PATH \
    PYTHONPATH=/opt/quietserve \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache \
    QUIETSERVE_HOST=0.0.0.0 \
    QUIETSERVE_PORT=8000
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /models
EXPOSE 8000
# The port is taken from the environment: set QUIETSERVE_PORT rather than --port. A large checkpoint may load for minutes;
# http.client, because urllib would ask a proxy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m \
    CMD ["python3", "-c", "import os, sys; from http.client import HTTPConnection; \
server = HTTPConnection('127.0.0.1', int(os.environ['QUIETSERVE_PORT']), timeout=4); \
server.request('GET', '/health'); sys.exit(server.getresponse().status != 200)"]
# No shell in between: the server is the first process, gets the signal itself, and finishes what runs before it leaves.
STOPSIGNAL SIGTERM
ENTRYPOINT ["quietserve"]
CMD ["serve"]
