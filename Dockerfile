# One image for the API, the migration job and the exporter: the command tells them apart.

FROM python:3.13-slim-trixie AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv
# Packages first: a change of the code alone reuses this layer. Wheels only, so no compiler is needed, and a package
# without one fails here instead of building something that nobody has hashed.
COPY requirements/app.txt requirements/build.txt /tmp/requirements/
RUN python -m pip --python /opt/venv install --require-hashes --only-binary :all: -r /tmp/requirements/app.txt
# The console script: it only points at /srv/headroom, where the last stage puts the code.
WORKDIR /srv/headroom
COPY pyproject.toml ./
COPY app/__init__.py app/
RUN python -m pip install --require-hashes --target /tmp/build -r /tmp/requirements/build.txt \
 && PYTHONPATH=/tmp/build python -m pip --python /opt/venv install --no-deps --no-build-isolation --no-index --editable .
# Compiled once, here: the final image is read by users who cannot write to it.
RUN python -m compileall -q /opt/venv

FROM python:3.13-slim-trixie

# Numeric, so that Kubernetes' runAsNonRoot can tell it is not root.
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
# The default, but it has to be said: without it Docker takes any signal (`docker compose kill --signal HUP api`, which
# makes Gunicorn replace its workers) for the wish that the container end, and does not restart it when it crashes later.
STOPSIGNAL SIGTERM
CMD ["headroom", "api"]
