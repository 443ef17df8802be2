# One image for the API, the migration job and the exporter. The command selects the program.
#
# The layers are reproducible: equal files give equal digests, whenever and wherever they are built
# (docs/decisions/0033-supply-chain.md). Each COPY into the final image takes a tree of files whose times are fixed. Byte
# code is valid by the hash of its source, not by its time.

FROM python:3.13-slim-trixie AS base

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONHASHSEED=0
# A numeric user: Kubernetes' runAsNonRoot cannot check a name. Without `lastlog`, which has a size of gigabytes.
RUN useradd --uid 10001 --no-log-init --no-create-home --home-dir /srv/headroom --shell /usr/sbin/nologin headroom \
 && mkdir -p /image/etc \
 && cp /etc/passwd /etc/group /image/etc/ \
 && install -d -o 10001 -g 10001 /image/var/lib/headroom/metrics
COPY --chmod=0755 ops/image/fix-times.sh /usr/local/bin/fix-times

FROM base AS packages

RUN python -m venv --without-pip /opt/venv
# Packages first: a code change reuses this layer. Wheels only: no compiler is needed, and a package without a wheel
# fails the build instead of running an unhashed build process.
COPY requirements/app.txt requirements/build.txt /tmp/requirements/
RUN python -m pip --python /opt/venv install --no-compile --require-hashes --only-binary :all: -r /tmp/requirements/app.txt
# Install the console script. It points to /srv/headroom, where the final stage copies the code.
WORKDIR /srv/headroom
COPY pyproject.toml ./
COPY app/__init__.py app/
RUN python -m pip install --require-hashes --target /tmp/build -r /tmp/requirements/build.txt \
 && PYTHONPATH=/tmp/build python -m pip --python /opt/venv install --no-compile --no-deps --no-build-isolation --no-index --editable .
# Compile now: the user of the final image cannot write bytecode.
RUN python -m compileall -q --invalidation-mode unchecked-hash /opt/venv \
 && mkdir -p /image/opt \
 && mv /opt/venv /image/opt/ \
 && fix-times /image

FROM base AS code

WORKDIR /code/srv/headroom
COPY pyproject.toml ./
COPY ops/gunicorn ops/gunicorn
COPY migrations migrations
COPY app app
# -s: the path in tracebacks. checked-hash: an image that replaces a file of this one runs the new file.
RUN python -m compileall -q --invalidation-mode checked-hash -s /code -p / app \
 && fix-times /code

FROM python:3.13-slim-trixie

COPY --from=packages /image /
COPY --from=code /code /
WORKDIR /srv/headroom

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    API_HOST=0.0.0.0 \
    EXPORTER_HOST=0.0.0.0 \
    METRICS_DIR=/var/lib/headroom/metrics
USER 10001:10001
EXPOSE 8000 9464
# SIGTERM is the default, but it must be explicit. Otherwise Docker treats any signal as a request to stop the container
# and does not restart it after a later crash. An example is `docker compose kill --signal HUP api`, Gunicorn's reload.
STOPSIGNAL SIGTERM
CMD ["headroom", "api"]

# Last: other values rebuild no layer.
ARG VERSION= REVISION= SOURCE= CREATED=
LABEL org.opencontainers.image.title="Headroom" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.created="$CREATED"
