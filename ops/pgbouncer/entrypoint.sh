#!/bin/sh
# Writes the one password that PgBouncer needs itself (it asks the server for everybody else's) to where only it can read.
set -eu

if [ -n "${HEADROOM_PGBOUNCER_PASSWORD_FILE:-}" ]; then
  HEADROOM_PGBOUNCER_PASSWORD=$(cat "$HEADROOM_PGBOUNCER_PASSWORD_FILE")
fi
: "${HEADROOM_PGBOUNCER_PASSWORD:?must be set, or HEADROOM_PGBOUNCER_PASSWORD_FILE}"

umask 077
# The file's own way to write a quote is to double it; nothing else in it needs escaping.
quoted=$(printf '%s' "$HEADROOM_PGBOUNCER_PASSWORD" | sed 's/"/""/g')
printf '"headroom_pgbouncer" "%s"\n' "$quoted" >/run/headroom-pgbouncer/userlist.txt
unset HEADROOM_PGBOUNCER_PASSWORD quoted
exec "$@"
