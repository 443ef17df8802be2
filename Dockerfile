# One image for the API, the migration job and the exporter. The command selects the program.

FROM python:3.13-slim-trixie AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
# Packages first: a code change reuses this layer. Wheels only: no compiler is needed, and a package without a wheel
# fails the build instead of running an unhashed build process.
COPY requirements/app.txt requirements/build.txt /tmp/requirements/
RUN python -m pip --python /opt/venv install --require-hashes --only-binary :all: -r /tmp/requirements/app.txt
# Install the console script. It points to /srv/headroom, where the final stage copies the code.
WORKDIR /srv/headroom
COPY pyproject.toml ./
COPY app/__init__.py app/
RUN python -m pip install --require-hashes --target /tmp/build -r /tmp/requirements/build.txt \
 && PYTHONPATH=/tmp/build python -m pip --python /opt/venv install --no-deps --no-build-isolation --no-index --editable .
# Compile now: the user of the final image cannot write bytecode.
RUN python -m compileall -q /opt/venv

FROM python:3.13-slim-trixie

# A numeric user: Kubernetes' runAsNonRoot cannot check a name.
RUN useradd --uid 10001 --no-create-home --home-dir /srv/headroom --shell /usr/sbin/nologin headroom \
 && install -d -o 10001 -g 10001 /var/lib/headroom/metrics
COPY --from=build /opt/venv /opt/venv
WORKDIR /srv/headroom
COPY pyproject.toml ./
COPY ops/gunicorn ops/gunicorn
COPY migrations migrations
COPY app app

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
