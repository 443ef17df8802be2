#!/usr/bin/env bash
# Writes the secrets of compose.prod.yml to the folder $1, and leaves alone what is there: run it again to add what is
# missing. The files can be read by everyone, because Compose mounts them as they are and no container runs as root;
# the folder cannot be entered by anyone else.
set -euo pipefail

folder=${1:?folder}
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"

secret() { # secret NAME VALUE; an empty file is no secret
  if [[ ! -s $1 ]]; then
    printf '%s' "$2" >"$1.new"
    chmod 0444 "$1.new"
    mv -f "$1.new" "$1"
    echo "$folder/$1"
  fi
}

random() { # random NAME BYTES, in hexadecimal: nothing to quote in a URL
  local value
  value=$(openssl rand -hex "$2") # in an assignment of its own: as an argument, its failure would be an empty secret
  secret "$1" "$value"
}

url() { # url NAME SCHEME-AND-ROLE PASSWORD-FILE ADDRESS
  local password
  password=$(<"$3")
  secret "$1" "$2:$password@$4"
  if [[ $(<"$1") != *":$password@"* ]]; then
    echo "$folder/$1 has another password than $3: delete it and run this again, unless you meant it" >&2
  fi
}

for role in superuser owner app monitor pgbouncer; do
  random "${role}_password" 24
done
random secret_key 32
url database_url postgresql+psycopg://headroom_app app_password pgbouncer:6432/headroom
url migration_database_url postgresql+psycopg://headroom_owner owner_password postgres:5432/headroom
url monitor_database_url postgresql+psycopg://headroom_monitor monitor_password postgres:5432/headroom
url pgbouncer_admin_url postgresql+psycopg://headroom_monitor monitor_password pgbouncer:6432/pgbouncer
