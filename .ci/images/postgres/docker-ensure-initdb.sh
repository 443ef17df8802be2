#!/usr/bin/env bash
# Initialise an empty volume. The official image has this program too; its entry point does the same before it starts the
# server.
set -euo pipefail
if [[ -s $PGDATA/PG_VERSION ]]; then exit 0; fi
for name in POSTGRES_USER POSTGRES_PASSWORD POSTGRES_DB; do
  file=${name}_FILE
  if [[ -n ${!file:-} ]]; then export "$name=$(<"${!file}")"; fi
done
: "${POSTGRES_USER:=postgres}"
: "${POSTGRES_DB:=$POSTGRES_USER}"
export POSTGRES_USER POSTGRES_DB

if [[ $PGDATA == "/var/lib/postgresql/$PG_MAJOR/docker" ]] && mountpoint -q /var/lib/postgresql/data; then
  echo "Error: there appears to be PostgreSQL data in: /var/lib/postgresql/data (unused mount/volume)" >&2
  exit 1
fi
: "${POSTGRES_PASSWORD:?Database is uninitialized and superuser password is not specified.}"
initdb -U "$POSTGRES_USER" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD") -A trust ${POSTGRES_INITDB_ARGS:-}
printf '\nhost all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
echo "listen_addresses = '*'" >>"$PGDATA/postgresql.conf"
pg_ctl -w start -o "-c listen_addresses=''"
psql=(psql -v ON_ERROR_STOP=1 --no-password -U "$POSTGRES_USER")
[[ $POSTGRES_DB == postgres ]] || "${psql[@]}" -d postgres -c "CREATE DATABASE \"$POSTGRES_DB\""
for script in /docker-entrypoint-initdb.d/*; do
  case $script in
    *.sh) if [[ -x $script ]]; then "$script"; else . "$script"; fi ;;
    *.sql) "${psql[@]}" -d "$POSTGRES_DB" -f "$script" ;;
  esac
done
pg_ctl -w -m fast stop
echo 'PostgreSQL init process complete; ready for start up.'
