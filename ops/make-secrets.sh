#!/usr/bin/env bash
# Write the missing secrets of compose.prod.yml to the folder $1. Existing secrets are kept. $2 is the host name of the
# certificate, by default localhost. $3 is the address HOST:PORT of a PostgreSQL server elsewhere, and $4 that of its
# pooler, or again that of the server to use no pooler (docs/external-postgres.md). $5 is the address of a standby for reads
# (docs/read-replicas.md).
# The files are world-readable: Compose mounts them with their mode, and no container runs as root. The folder is
# accessible only to its owner. No container gets the authority's key, so only its owner can read it.
set -euo pipefail

folder=${1:?usage: make-secrets.sh FOLDER [HOST [POSTGRES [POOLER [STANDBY]]]]}
host=${2:-localhost}
mkdir -p "$folder"
chmod 0700 "$folder"
cd "$folder"

# The addresses that were given first hold until their files are deleted.
server=${3:-$(cat database_server 2>/dev/null || true)}
pooler=${4:-$(cat database_pooler 2>/dev/null || true)}
standby=${5:-$(cat database_standby 2>/dev/null || true)}
for address in "$server" "$pooler" "$standby"; do
  if [[ -n $address && ! $address =~ ^[^:/@]+:[0-9]+$ ]]; then
    echo "the address of PostgreSQL must be HOST:PORT, got $address" >&2
    exit 2
  fi
done

secret() { # secret NAME VALUE; replaces an empty file
  if [[ ! -s $1 ]]; then
    printf '%s' "$2" >"$1.new"
    chmod 0444 "$1.new"
    mv -f "$1.new" "$1"
    echo "$folder/$1"
  fi
}

optional() { # optional NAME: an empty line, to which the operator may write a value. Swarm refuses an empty file
  if [[ ! -s $1 ]]; then
    (umask 022 && echo >"$1")
    echo "$folder/$1 (optional: empty)"
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
  elif [[ -n $server && $(<"$1") != *"@$4" ]]; then
    echo "$folder/$1 does not lead to $4: delete it and run make secrets again, unless intended" >&2
  fi
}

alternative_names() { # alternative_names HOST; clients compare an address with the addresses, and a name with the names
  local kind=DNS
  if [[ $1 == *:* || $1 =~ ^[0-9]+(\.[0-9]+){3}$ ]]; then kind=IP; fi
  printf '%s\n' "$kind:$1" DNS:localhost IP:127.0.0.1 | awk '!seen[$0]++' | paste -sd, -
}

# An authority of our own, and a certificate that it issues.
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
    echo "subjectAltName=$(alternative_names "$1")"
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
[[ ! -e tls_ca_key ]] || chmod 0400 tls_ca_key
backup_repository backup_repository
random grafana_password 16
optional alert_smtp_password
optional alert_webhook_url
optional alert_watchdog_url
driver=postgresql+psycopg
direct=postgres:5432/headroom
pooled=pgbouncer:6432/headroom
options=""
if [[ -n $server ]]; then
  options="?sslmode=verify-full&sslrootcert=/run/secrets/database_ca"
  direct=$server/headroom$options
  secret database_server "$server"
  if [[ $(<database_server) != "$server" ]]; then
    echo "$folder/database_server is another server than $server: delete it and run make secrets again" >&2
  fi
  if [[ -n $pooler ]]; then
    secret database_pooler "$pooler"
    pooled=$pooler/headroom$options
  fi
  if [[ $pooler == "$server" ]]; then driver=postgresql+asyncpg; fi
  for name in database_ca admin_password; do
    if [[ ! -s $name ]]; then echo "$folder/$name is missing: see docs/external-postgres.md" >&2; fi
  done
fi
# A rotation of the password can change the role to headroom_app_2 (ops/deploy/rotation.py).
url database_url "$driver://headroom_app" app_password "$pooled"
url migration_database_url postgresql+psycopg://headroom_owner owner_password "$direct"
url monitor_database_url postgresql+psycopg://headroom_monitor monitor_password "$direct"
url pgbouncer_admin_url postgresql+psycopg://headroom_monitor monitor_password pgbouncer:6432/pgbouncer
url pgbouncer_console_url postgresql+psycopg://headroom_console console_password pgbouncer:6432/pgbouncer
if [[ -n $standby ]]; then
  secret database_standby "$standby"
  if [[ -z $server ]]; then random replication_password 24; fi # of a role that compose.replica.yml creates
  # A rotation can change the role and the password of the API. A standby has those of the primary.
  credentials=$(sed -E '1s#^[^:]*://([^@]*)@.*#\1#' database_url)
  secret database_read_url "$driver://$credentials@$standby/headroom$options"
  if [[ $(<database_read_url) != *"://$credentials@$standby/"* ]]; then
    echo "$folder/database_read_url does not have the role and the password of database_url, or does not lead to $standby:" \
      "delete it and run make secrets again, unless intended" >&2
  fi
  url monitor_read_url postgresql+psycopg://headroom_monitor monitor_password "$standby/headroom$options"
fi
