#!/bin/sh
# Run PgBouncer, and tell it when the server `postgres` has another address: `follow pgbouncer FILE`. A new container may
# have one, and in Swarm it always has. Docker's DNS gives an address a TTL of 600 s, and PgBouncer's resolver
# caches it for that time (docs/decisions/0034-swarm.md). `getent` has no cache.
set -eu

runtime=${PGBOUNCER_RUNTIME:-/run/headroom-pgbouncer}
databases=$(dirname "$2")/databases.ini

write() { # write HOST; use this host instead of the name
  sed -E "s/host=postgres( |\$)/host=$1\1/" "$databases" >"$runtime/databases.ini.new"
  mv -f "$runtime/databases.ini.new" "$runtime/databases.ini"
}

address() {
  getent ahostsv4 postgres | awk 'NR == 1 { print $1 }'
}

known=$(address)
write "${known:-postgres}"
sed "s#^%include $databases#%include $runtime/databases.ini#" "$2" >"$runtime/pgbouncer.ini"
trap '' HUP # until PgBouncer has a handler
(
  while sleep 1; do
    found=$(address)
    if [ -n "$found" ] && [ "$found" != "$known" ]; then
      write "$found"
      kill -HUP $$ # of PgBouncer, which replaces this shell below
      echo "follow: postgres has the address $found" >&2
      known=$found
    fi
  done
) &
exec "$1" "$runtime/pgbouncer.ini"
