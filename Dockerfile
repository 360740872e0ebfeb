FROM python:3.12-slim AS build
WORKDIR /src
COPY LICENSE README.md pyproject.toml setup.cfg ./
COPY migrations migrations
COPY service service
COPY sql sql
RUN python -m venv /opt/bridgelog \
    && pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && /opt/bridgelog/bin/pip install --no-cache-dir /wheels/*.whl

FROM python:3.12-slim
LABEL org.opencontainers.image.title="bridgelog" \
    org.opencontainers.image.description="Who asked which AI model for what, with which tools, at what token cost: an audit log over HTTP" \
    org.opencontainers.image.licenses="MIT"
# The home folder is where its own PostgreSQL keeps its data when no BRIDGELOG_DATABASE_URL is given.
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/bridgelog --shell /usr/sbin/nologin bridgelog \
    && chmod 700 /var/lib/bridgelog
COPY --from=build /opt/bridgelog /opt/bridgelog
ENV PATH=/opt/bridgelog/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BRIDGELOG_HOST=0.0.0.0 \
    BRIDGELOG_DATA_DIR=/var/lib/bridgelog
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('BRIDGELOG_PORT', '8080') + '/healthz', timeout=4)"]
ENTRYPOINT ["bridgelog"]
CMD ["serve"]
