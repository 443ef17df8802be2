#!/usr/bin/env bash
# Create the database and the roles on a server elsewhere, and set the roles' passwords. The administrator POSTGRES_ADMIN
# needs CREATEROLE and CREATEDB. May be run again: it sets the passwords again.
# With the argument `-`, run only the statements of the standard input: ops/deploy/rotation.py.
set -euo pipefail
cd /run/secrets

server=$(<database_server)
PGPASSWORD=$(<admin_password)
export PGHOST=${server%:*} PGPORT=${server##*:} PGUSER=$POSTGRES_ADMIN PGPASSWORD
export PGSSLMODE=verify-full PGSSLROOTCERT=$PWD/database_ca PGCONNECT_TIMEOUT=10
for role in owner app monitor; do
  export "$role=$(<"${role}_password")"
done

psql() { command psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --no-password "$@"; }

if [[ ${1:-} == - ]]; then
  psql --dbname headroom --single-transaction --file -
  exit
fi

psql --dbname "$POSTGRES_ADMIN_DATABASE" <<'SQL'
SELECT 'CREATE DATABASE headroom' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'headroom') \gexec
SQL
# psql reads the passwords from its environment and quotes them, as in init/roles.sh.
psql --dbname headroom --single-transaction --file /etc/postgresql/roles.sql --file - <<'SQL'
\getenv owner owner
\getenv app app
\getenv monitor monitor
ALTER ROLE headroom_owner PASSWORD :'owner';
ALTER ROLE headroom_app PASSWORD :'app';
ALTER ROLE headroom_app_2 PASSWORD :'app'; -- a rotation may have put this role into the API's URL
ALTER ROLE headroom_monitor PASSWORD :'monitor';
SQL
echo "the roles of the database headroom on $server are up to date"
