#!/bin/sh
# Write the password of PgBouncer's own role to a file that only PgBouncer can read. It queries PostgreSQL for the
# passwords of the other roles.
set -eu

if [ -n "${HEADROOM_PGBOUNCER_PASSWORD_FILE:-}" ]; then
  HEADROOM_PGBOUNCER_PASSWORD=$(cat "$HEADROOM_PGBOUNCER_PASSWORD_FILE")
fi
: "${HEADROOM_PGBOUNCER_PASSWORD:?must be set, or HEADROOM_PGBOUNCER_PASSWORD_FILE must name a file that is not empty}"

umask 077
# In userlist.txt a quote is escaped by doubling it. No other character needs escaping.
quoted=$(printf '%s' "$HEADROOM_PGBOUNCER_PASSWORD" | sed 's/"/""/g')
printf '"headroom_pgbouncer" "%s"\n' "$quoted" >/run/headroom-pgbouncer/userlist.txt
unset HEADROOM_PGBOUNCER_PASSWORD quoted
exec "$@"
