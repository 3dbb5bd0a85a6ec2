# docker build -t quietserve .    docker run --rm -p 8000:8000 quietserve
# Behind a mirror, or for another build of torch: --build-arg PIP_INDEX_URL=... or --build-arg PIP_EXTRA_INDEX_URL=...
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN python3 -m venv /opt/quietserve
ENV PATH=/opt/quietserve/bin:$PATH
WORKDIR /src
# torch by itself and first: the largest layer, and the one that a change of our sources should not build again.
COPY constraints.txt ./
RUN pip install --no-cache-dir "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY model model
COPY clients clients
RUN pip install --no-cache-dir --constraint constraints.txt .

FROM ${BASE}
RUN useradd --create-home --uid 10001 quietserve
COPY --from=build /opt/quietserve /opt/quietserve
ENV PATH=/opt/quietserve/bin:$PATH \
    PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/quietserve
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python3", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["quietserve"]
CMD ["serve", "--host", "0.0.0.0"]
