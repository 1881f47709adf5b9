# The gateway in a container: docker build -t imagen-gateway .
# compose.yaml runs it.

FROM python:3.11-slim-bookworm AS build
WORKDIR /build
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /opt/imagen \
    && /opt/imagen/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[postgres,supabase]"

FROM python:3.11-slim-bookworm
# A number of its own, so that Kubernetes can tell that it is not root.
RUN groupadd --gid 10001 imagen \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin imagen \
    && install --directory --owner imagen --group imagen --mode 0700 /data
COPY --from=build /opt/imagen /opt/imagen
ENV PATH=/opt/imagen/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/data \
    IMAGEN_DATA_DIR=/data \
    IMAGEN_LOG__FORMAT=json \
    IMAGEN_LOG__LEVEL=info \
    FLASK_HOST=0.0.0.0 \
    FLASK_PORT=5003
USER 10001:10001
WORKDIR /data
# The database, with every purchase and lease, and the pictures: keep it.
VOLUME /data
EXPOSE 5003
# Whether it is alive; whether it takes work is told by /ready. The image has no curl.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client, os, sys; c = http.client.HTTPConnection('127.0.0.1', int(os.environ['FLASK_PORT']), timeout=8); c.request('GET', '/health'); sys.exit(c.getresponse().status != 200)"]
CMD ["imagen", "serve"]
