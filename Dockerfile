# docker build --tag bridgelog --build-arg REVISION="$(git rev-parse HEAD)" .
#
# Where pip cannot do without a configuration (an index of one's own, with its password): --secret id=pip.conf,src=FILE.
# The build sees it, no layer keeps it.

FROM python:3.12-slim AS build
WORKDIR /src
COPY LICENSE README.md pyproject.toml setup.cfg ./
COPY migrations migrations
COPY service service
COPY sql sql
# Without pip: nothing is installed where this runs.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    python -m venv --without-pip /opt/bridgelog \
    && pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && pip --python /opt/bridgelog/bin/python install --no-cache-dir /wheels/*.whl

FROM python:3.12-slim
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="bridgelog" \
    org.opencontainers.image.description="Who asked which AI model for what, with which tools, at what token cost: an audit log over HTTP" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.base.name="docker.io/library/python:3.12-slim"
# The home folder is where its own PostgreSQL keeps its data when no BRIDGELOG_DATABASE_URL is given, and the bridge what
# the database has yet to take. A volume that is mounted here gets its owner and mode.
RUN useradd --no-log-init --uid 10001 --create-home --home-dir /var/lib/bridgelog --shell /usr/sbin/nologin bridgelog \
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
