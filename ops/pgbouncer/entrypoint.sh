#!/bin/sh
# Writes the one password that PgBouncer needs itself (it asks the server for everybody else's) to where only it can read.
set -eu

if [ -n "${HEADROOM_PGBOUNCER_PASSWORD_FILE:-}" ]; then
  HEADROOM_PGBOUNCER_PASSWORD=$(cat "$HEADROOM_PGBOUNCER_PASSWORD_FILE")
fi
: "${HEADROOM_PGBOUNCER_PASSWORD:?must be set, or HEADROOM_PGBOUNCER_PASSWORD_FILE}"

umask 077
printf '"headroom_pgbouncer" "%s"\n' "$HEADROOM_PGBOUNCER_PASSWORD" >/run/headroom-pgbouncer/userlist.txt
unset HEADROOM_PGBOUNCER_PASSWORD
exec "$@"
