# Small, and nothing in it runs as root: docker build -t penstock .
FROM python:3.11-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY cdc cdc
COPY sinks sinks
COPY schemas schemas
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim
COPY --from=build /wheels /wheels
# With the client of external schema registries. librdkafka comes inside confluent-kafka's wheel.
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[registry]" && rm -r /wheels \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/penstock penstock \
    && install -d -o penstock -g penstock -m 0750 /var/lib/penstock \
    && install -d /etc/penstock
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
# The pipeline file is mounted here as pipeline.yaml; the log lives in the volume.
WORKDIR /etc/penstock
VOLUME /var/lib/penstock
EXPOSE 8484
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8484/healthz', timeout=4)"]
ENTRYPOINT ["cdc"]
CMD ["--help"]
