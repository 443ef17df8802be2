#!/usr/bin/env bash
# Run once, on a new volume, by the image's entry point: the roles, and a password for each.
set -euo pipefail

password() { # password ROLE: from HEADROOM_<ROLE>_PASSWORD, or the file that HEADROOM_<ROLE>_PASSWORD_FILE names
  local name="HEADROOM_${1^^}_PASSWORD"
  local file="${name}_FILE"
  if [[ -n ${!file:-} ]]; then
    cat "${!file}"
  else
    printf '%s' "${!name:?must be set, or $file}"
  fi
}

run=(psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --no-password --username "$POSTGRES_USER" --dbname "$POSTGRES_DB")
"${run[@]}" --file /etc/postgresql/roles.sql
for role in owner app monitor pgbouncer; do
  # Through stdin: an argument would be in the process list.
  secret=$(password "$role")
  "${run[@]}" <<SQL
\set secret '$secret'
ALTER ROLE headroom_$role PASSWORD :'secret';
SQL
done
