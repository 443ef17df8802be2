#!/usr/bin/env bash
# Run once, on a new volume, by the image's entry point: the roles, and a password for each.
set -euo pipefail

# By this file the image knows a volume that is complete. Left there after a failure, the next start would be of a server
# that has no roles; without it initdb refuses the volume, until that is deleted (docker compose down --volumes).
trap '(($? == 0)) || rm -f "$PGDATA/PG_VERSION"' EXIT

for role in OWNER APP MONITOR PGBOUNCER; do
  name=HEADROOM_${role}_PASSWORD
  file=${name}_FILE
  if [[ -n ${!file:-} ]]; then
    value=$(<"${!file}")
  else
    value=${!name:-}
  fi
  if [[ -z $value ]]; then
    echo "$name: must be set, or $file, and not be empty" >&2
    exit 1
  fi
  export "$name=$value"
done

# All or nothing. psql takes the passwords from its environment and quotes them: as arguments they would be in the
# process list, and as part of the text their own quotes and backslashes would count.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --no-password --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --single-transaction --file /etc/postgresql/roles.sql --file - <<'SQL'
\getenv owner HEADROOM_OWNER_PASSWORD
\getenv app HEADROOM_APP_PASSWORD
\getenv monitor HEADROOM_MONITOR_PASSWORD
\getenv pgbouncer HEADROOM_PGBOUNCER_PASSWORD
ALTER ROLE headroom_owner PASSWORD :'owner';
ALTER ROLE headroom_app PASSWORD :'app';
ALTER ROLE headroom_monitor PASSWORD :'monitor';
ALTER ROLE headroom_pgbouncer PASSWORD :'pgbouncer';
SQL
