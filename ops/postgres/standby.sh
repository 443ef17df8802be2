#!/usr/bin/env bash
# Start a standby of the service `postgres`. An empty volume gets a copy of it first. A copy that did not end is deleted.
set -euo pipefail

refuse() {
  echo "the standby does not start: $* (docs/read-replicas.md#create-the-standby-again)" >&2
  exit 1
}

# The server reads the password from this file whenever it connects. It is hexadecimal, which needs no quoting.
passwords=/tmp/replication.pgpass
(umask 077 && printf '*:*:*:headroom_replication:%s\n' "$(</run/secrets/replication_password)" >"$passwords")
primary="host=postgres port=5432 user=headroom_replication passfile=$passwords application_name=standby"

if [[ ! -e $PGDATA ]]; then
  copy=$PGDATA.incomplete
  # A new primary may be initialised still, or not yet admit the role.
  until rm -rf "$copy" && pg_basebackup --dbname="$primary" --pgdata="$copy" --wal-method=stream --checkpoint=fast; do
    sleep 1
  done
  touch "$copy/standby.signal"
  mv "$copy" "$PGDATA"
fi

server=$(postgres --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
data=$(<"$PGDATA/PG_VERSION")
[[ $data == "$server" ]] || refuse "it has the data of PostgreSQL $data, and the server is $server"
[[ -e $PGDATA/standby.signal ]] || refuse "it was promoted: delete its volume, or it would be a second primary"
exec "$@" -c "primary_conninfo=$primary" -c "restore_command=pgbackrest archive-get %f %p"
