# The sidecar and the migrator in one small image: `docker run ... dualwire proxy --config /etc/dualwire/dualwire.toml`.
FROM python:3.12-slim AS build
WORKDIR /src
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir uv
COPY pyproject.toml uv.lock README.md LICENSE ./
COPY proxy proxy
COPY migrator migrator
# The locked dependencies with their hashes, then the compiled wheel alone: the image has no source tree and no build
# tools. Should the wheel not compile, there is no image.
ENV DUALWIRE_COMPILE=require
RUN python -m venv /opt/dualwire \
    && uv export --quiet --locked --no-emit-project --output-file requirements.txt \
    && uv pip install --quiet --python /opt/dualwire/bin/python --require-hashes -r requirements.txt \
    && uv build --quiet --wheel --out-dir dist \
    && uv pip install --quiet --python /opt/dualwire/bin/python --no-deps dist/dualwire-*.whl

FROM python:3.12-slim
RUN useradd --system --no-create-home --shell /usr/sbin/nologin dualwire
COPY --from=build /opt/dualwire /opt/dualwire
COPY config/dualwire.toml /etc/dualwire/dualwire.toml
ENV PATH=/opt/dualwire/bin:$PATH PYTHONUNBUFFERED=1
USER dualwire
EXPOSE 6432 9432
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9432/healthz', timeout=2)"]
ENTRYPOINT ["dualwire"]
CMD ["proxy", "--config", "/etc/dualwire/dualwire.toml"]
