#!/usr/bin/env bash
# Pause PgBouncer until the standard input ends, and at most for $2 seconds. Transactions get $1 seconds to end.
# ops/restart.py runs this script in PgBouncer's container. However that program ends, its end resumes PgBouncer.
set -euo pipefail

console() {
  psql --no-psqlrc --quiet --no-align --tuples-only --host /run/headroom-pgbouncer --port 6432 --username pgbouncer \
    --dbname pgbouncer --command "$1"
}

if [[ $(console 'SHOW STATE' | grep -c '^paused|yes') != 0 ]]; then
  echo 'PgBouncer is paused already' >&2
  exit 3
fi
# What a client waits for a server connection. Statements that are on their way wait for the end of the pause instead.
limit=$(console 'SHOW CONFIG' | sed -n 's/^query_wait_timeout|\([^|]*\).*/\1/p')
trap 'console RESUME >/dev/null 2>&1 || true; console "SET query_wait_timeout = $limit" >/dev/null 2>&1 || true' EXIT
trap 'exit 1' HUP INT TERM
console "SET query_wait_timeout = $(($1 + $2))"
if ! timeout "$1" psql --no-psqlrc --quiet --host /run/headroom-pgbouncer --port 6432 --username pgbouncer \
  --dbname pgbouncer --command PAUSE; then
  echo "a transaction has not ended within $1 s" >&2
  exit 4
fi
echo paused
read -r -t "$2" || true
