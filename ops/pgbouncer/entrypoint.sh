#!/bin/sh
# Write the passwords of PgBouncer's own role and of the migration job's console user to a file that only PgBouncer can
# read. It queries PostgreSQL for the passwords of the other roles, unless they are given too: a server elsewhere does
# not let it (docs/external-postgres.md).
set -eu

read_secret() { # read_secret NAME; set the variable NAME to the content of the file NAME_FILE, if that is set
  eval "file=\${${1}_FILE:-}"
  if [ -n "$file" ]; then
    eval "$1=\$(cat \"\$file\")"
  fi
}
for name in PGBOUNCER APP MONITOR CONSOLE; do
  read_secret "HEADROOM_${name}_PASSWORD"
done
if [ -z "${DATABASE_SERVER_FILE:-}" ]; then
  : "${HEADROOM_PGBOUNCER_PASSWORD:?must be set, or HEADROOM_PGBOUNCER_PASSWORD_FILE must name a file that is not empty}"
fi

umask 077
user() { # user NAME PASSWORD; in userlist.txt a quote is escaped by doubling it, and nothing else needs escaping
  if [ -n "$2" ]; then
    printf '"%s" "%s"\n' "$1" "$(printf '%s' "$2" | sed 's/"/""/g')"
  fi
}
{
  user headroom_pgbouncer "${HEADROOM_PGBOUNCER_PASSWORD:-}"
  user headroom_app "${HEADROOM_APP_PASSWORD:-}"
  user headroom_app_2 "${HEADROOM_APP_PASSWORD:-}" # a rotation may have put this role into the API's URL
  user headroom_monitor "${HEADROOM_MONITOR_PASSWORD:-}"
  # Without a password, the migration job cannot have server connections renewed, and says so.
  user headroom_console "${HEADROOM_CONSOLE_PASSWORD:-}"
} >/run/headroom-pgbouncer/userlist.txt
unset HEADROOM_PGBOUNCER_PASSWORD HEADROOM_APP_PASSWORD HEADROOM_MONITOR_PASSWORD HEADROOM_CONSOLE_PASSWORD

if [ -n "${DATABASE_SERVER_FILE:-}" ]; then
  server=$(cat "$DATABASE_SERVER_FILE")
  {
    # In one section: a second one would set everything back to the defaults.
    sed -E '/^(auth_user|auth_query|auth_dbname|%include) /d' /etc/pgbouncer/pgbouncer.ini
    echo 'server_tls_sslmode = verify-full'
    echo "server_tls_ca_file = $DATABASE_CA_FILE"
    echo '[databases]'
    echo "headroom = host=${server%:*} port=${server##*:}"
  } >/run/headroom-pgbouncer/pgbouncer.ini
  set -- pgbouncer /run/headroom-pgbouncer/pgbouncer.ini
fi
exec "$@"
