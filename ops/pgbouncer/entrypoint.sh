#!/bin/sh
# Write the passwords of PgBouncer's own role and of the migration job's console user to a file that only PgBouncer can
# read. It queries PostgreSQL for the passwords of the other roles.
set -eu

if [ -n "${HEADROOM_PGBOUNCER_PASSWORD_FILE:-}" ]; then
  HEADROOM_PGBOUNCER_PASSWORD=$(cat "$HEADROOM_PGBOUNCER_PASSWORD_FILE")
fi
: "${HEADROOM_PGBOUNCER_PASSWORD:?must be set, or HEADROOM_PGBOUNCER_PASSWORD_FILE must name a file that is not empty}"

if [ -n "${HEADROOM_CONSOLE_PASSWORD_FILE:-}" ]; then
  HEADROOM_CONSOLE_PASSWORD=$(cat "$HEADROOM_CONSOLE_PASSWORD_FILE")
fi

umask 077
user() { # user NAME PASSWORD; in userlist.txt a quote is escaped by doubling it, and nothing else needs escaping
  printf '"%s" "%s"\n' "$1" "$(printf '%s' "$2" | sed 's/"/""/g')"
}
{
  user headroom_pgbouncer "$HEADROOM_PGBOUNCER_PASSWORD"
  # Without a password, the migration job cannot have server connections renewed, and says so.
  if [ -n "${HEADROOM_CONSOLE_PASSWORD:-}" ]; then
    user headroom_console "$HEADROOM_CONSOLE_PASSWORD"
  fi
} >/run/headroom-pgbouncer/userlist.txt
unset HEADROOM_PGBOUNCER_PASSWORD HEADROOM_CONSOLE_PASSWORD
exec "$@"
