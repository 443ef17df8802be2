#!/usr/bin/env bash
# Create the role of the standby in the running primary, and admit it. Idempotent: compose.replica.yml runs it at each start.
set -euo pipefail

psql=(psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --host /run/postgresql --username postgres --dbname postgres)
until pg_isready --quiet --host /run/postgresql; do sleep 1; done

# psql reads the password from the file: it is in no environment and no argument. The log gets no statement with it.
"${psql[@]}" <<'SQL'
SET log_min_duration_statement = -1;
SET log_min_error_statement = panic;
\set password `cat /run/secrets/replication_password`
SELECT 'CREATE ROLE headroom_replication' WHERE NOT EXISTS (
    SELECT FROM pg_roles WHERE rolname = 'headroom_replication'
) \gexec
ALTER ROLE headroom_replication LOGIN REPLICATION PASSWORD :'password';
SQL

# `all` in pg_hba.conf does not include replication.
rule="host replication headroom_replication all scram-sha-256"
if ! grep --quiet --fixed-strings --line-regexp "$rule" "$PGDATA/pg_hba.conf"; then
  echo "$rule" >>"$PGDATA/pg_hba.conf"
  "${psql[@]}" --output /dev/null --command 'SELECT pg_reload_conf()'
fi
echo "headroom_replication may replicate"
