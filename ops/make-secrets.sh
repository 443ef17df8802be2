#!/usr/bin/env bash
# Write the missing secrets of compose.prod.yml to the folder $1. Existing secrets are kept. $2 is the host name of the
# certificate, by default localhost.
# The files are world-readable: Compose mounts them with their mode, and no container runs as root. The folder is
# accessible only to its owner.
set -euo pipefail

folder=${1:?usage: make-secrets.sh FOLDER [HOST]}
host=${2:-localhost}
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"

secret() { # secret NAME VALUE; replaces an empty file
  if [[ ! -s $1 ]]; then
    printf '%s' "$2" >"$1.new"
    chmod 0444 "$1.new"
    mv -f "$1.new" "$1"
    echo "$folder/$1"
  fi
}

random() { # random NAME BYTES; hexadecimal, which needs no quoting in a URL
  local value
  value=$(openssl rand -hex "$2") # a separate assignment: as an argument, a failure would write an empty secret
  secret "$1" "$value"
}

url() { # url NAME SCHEME-AND-ROLE PASSWORD-FILE ADDRESS
  local password
  password=$(<"$3")
  secret "$1" "$2:$password@$4"
  if [[ $(<"$1") != *":$password@"* ]]; then
    echo "$folder/$1 does not contain the password of $3: delete it and run make secrets again, unless intended" >&2
  fi
}

# An authority of our own, and a certificate that it issues. No container gets the authority's key.
certificate() { # certificate HOST
  local new=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout tls_key.new -subj "/CN=$1")
  if [[ ! -s tls_ca_certificate || ! -s tls_ca_key ]]; then
    rm -f tls_ca_certificate tls_ca_key
    quietly openssl req "${new[@]}" -subj "/CN=Headroom" -x509 -days 3650 -out tls_certificate.new \
      -addext keyUsage=critical,keyCertSign,cRLSign
    secret tls_ca_key "$(<tls_key.new)"
    secret tls_ca_certificate "$(<tls_certificate.new)"
  fi
  quietly openssl req "${new[@]}" -out tls_request.new
  quietly openssl x509 -req -in tls_request.new -days 397 -set_serial "0x$(openssl rand -hex 16)" -out tls_certificate.new \
    -CA tls_ca_certificate -CAkey tls_ca_key -extfile <(
    echo "subjectAltName=DNS:$1,DNS:localhost,IP:127.0.0.1"
    echo "keyUsage=critical,digitalSignature"
    echo "extendedKeyUsage=serverAuth"
  )
  secret tls_key "$(<tls_key.new)"
  secret tls_certificate "$(<tls_certificate.new)"
  rm -f tls_key.new tls_request.new tls_certificate.new
}

quietly() { # quietly COMMAND...; show its output only if it fails
  local output
  output=$("$@" 2>&1) || { echo "$output" >&2; return 1; }
}

backup_repository() { # backup_repository NAME; a part of pgBackRest's configuration
  local key
  key=$(openssl rand -hex 32)
  secret "$1" "[global]
repo1-path=/var/lib/pgbackrest
repo1-cipher-type=aes-256-cbc
repo1-cipher-pass=$key
"
}

for role in superuser owner app monitor pgbouncer console; do
  random "${role}_password" 24
done
random secret_key 32
secret secret_key_fallbacks $'\n' # none: only a rotation of the signing key writes one; Swarm refuses an empty file
if [[ ! -s tls_certificate && ! -s tls_key ]]; then
  certificate "$host"
elif [[ ! -s tls_certificate || ! -s tls_key ]]; then
  echo "$folder has only one of tls_certificate and tls_key: add the other one, or delete both" >&2
  exit 1
fi
backup_repository backup_repository
# A rotation of the password can change the role to headroom_app_2 (ops/deploy/rotation.py).
url database_url postgresql+psycopg://headroom_app app_password pgbouncer:6432/headroom
url migration_database_url postgresql+psycopg://headroom_owner owner_password postgres:5432/headroom
url monitor_database_url postgresql+psycopg://headroom_monitor monitor_password postgres:5432/headroom
url pgbouncer_admin_url postgresql+psycopg://headroom_monitor monitor_password pgbouncer:6432/pgbouncer
url pgbouncer_console_url postgresql+psycopg://headroom_console console_password pgbouncer:6432/pgbouncer
