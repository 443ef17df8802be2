#!/usr/bin/env bash
# Start PostgreSQL as the entry point of its image does, unless the volume has the data of another major version.
# PostgreSQL would refuse that too, but its message has no next step. Nothing is written to a refused volume.
set -euo pipefail

server=$(postgres --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
if [[ -s $PGDATA/PG_VERSION ]]; then data=$(<"$PGDATA/PG_VERSION"); else data=$server; fi
found="the volume has the data of PostgreSQL $data"

refuse() {
  echo "PostgreSQL $server does not start: $* (docs/postgres-upgrade.md)" >&2
  exit 1
}
if [[ -e $PGDATA/upgrade.incomplete ]]; then
  refuse "the upgrade of this volume did not finish; run make upgrade-postgres again"
elif [[ -e $PGDATA/upgraded ]]; then
  refuse "this volume was copied to one of PostgreSQL $(<"$PGDATA/upgraded"); set POSTGRES_IMAGE and POSTGRES_VOLUME to" \
    "those, or delete the file 'upgraded' of this volume to go back"
elif ((data < server)); then
  refuse "$found; run make upgrade-postgres, or set POSTGRES_IMAGE to an image of $data"
elif ((data > server)); then
  refuse "$found; set POSTGRES_IMAGE to an image of $data (docker compose up --build)," \
    "or POSTGRES_VOLUME to the volume of $server"
fi
# As root, the entry point changes the user.
if (($(id -u) == 0)); then exec docker-entrypoint.sh "$@"; fi
# In production it is not used: it would leave the superuser's password in the environment of the server. The image has
# a program for the initialisation alone.
if [[ ! -s $PGDATA/PG_VERSION ]]; then docker-ensure-initdb.sh "$@"; fi
exec "$@"
