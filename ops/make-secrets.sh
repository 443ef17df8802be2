#!/usr/bin/env bash
# Writes the secrets of compose.prod.yml to the folder $1, and leaves alone what is there: run it again to add what is
# missing. The files can be read by everyone, because Compose mounts them as they are and no container runs as root;
# the folder cannot be entered by anyone else.
set -euo pipefail

folder=${1:?folder}
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"

secret() { # secret NAME VALUE
  if [[ ! -e $1 ]]; then
    printf '%s' "$2" >"$1.new"
    chmod 0444 "$1.new"
    mv "$1.new" "$1"
    echo "$folder/$1"
  fi
}

# Hexadecimal: nothing to quote in a URL.
for role in superuser owner app monitor pgbouncer; do
  secret "${role}_password" "$(openssl rand -hex 24)"
done
secret secret_key "$(openssl rand -hex 32)"
secret database_url "postgresql+psycopg://headroom_app:$(<app_password)@pgbouncer:6432/headroom"
secret migration_database_url "postgresql+psycopg://headroom_owner:$(<owner_password)@postgres:5432/headroom"
