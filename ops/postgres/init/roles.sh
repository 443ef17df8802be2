#!/usr/bin/env bash
# Create the roles and set their passwords. The entry point of the image runs this script once, on a new volume.
set -euo pipefail

# The image treats a volume with this file as complete. After a failure, delete it: the next start would otherwise run a
# server without roles. initdb then refuses the volume until it is deleted (docker compose down --volumes).
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
    echo "$name: must be set, or $file must name a file that is not empty" >&2
    exit 1
  fi
  export "$name=$value"
done

# One transaction. psql reads the passwords from its environment and quotes them. As arguments they would appear in the
# process list; in the SQL text their quotes and backslashes would need escaping.
psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --no-password --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --single-transaction --file /etc/postgresql/roles.sql --file - <<'SQL'
\getenv owner HEADROOM_OWNER_PASSWORD
\getenv app HEADROOM_APP_PASSWORD
\getenv monitor HEADROOM_MONITOR_PASSWORD
\getenv pgbouncer HEADROOM_PGBOUNCER_PASSWORD
-- The log would have the passwords of a statement that is slow or fails.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
ALTER ROLE headroom_owner PASSWORD :'owner';
ALTER ROLE headroom_app PASSWORD :'app';
ALTER ROLE headroom_app_2 PASSWORD :'app'; -- a rotation may have put this role into the API's URL
ALTER ROLE headroom_monitor PASSWORD :'monitor';
ALTER ROLE headroom_pgbouncer PASSWORD :'pgbouncer';
SQL
