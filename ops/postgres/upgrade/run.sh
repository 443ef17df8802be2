#!/usr/bin/env bash
# make upgrade-postgres: copy the data of a stack to a new volume, for the next major version of PostgreSQL.
#   run.sh COMPOSE_FILE [pg_upgrade | dump]
set -euo pipefail
cd "$(dirname "$0")/../../.."

file=$1
method=${2:-pg_upgrade}
[[ $method == pg_upgrade || $method == dump ]] || {
  echo "method must be pg_upgrade or dump, got '$method'" >&2
  exit 1
}
compose=(docker compose --file "$file" --file ops/postgres/upgrade/compose.yml)
volume=${UPGRADE_TO_VOLUME:-postgres-18}
image=${UPGRADE_TO_IMAGE:-postgres:18-trixie}

"${compose[@]}" build --quiet upgrade
"${compose[@]}" run --rm --no-TTY upgrade "$method" check
"${compose[@]}" stop postgres
if ! "${compose[@]}" run --rm --no-TTY upgrade "$method"; then
  "${compose[@]}" up --no-recreate --no-deps --no-build --detach --wait postgres
  echo "PostgreSQL runs on the old volume again" >&2
  exit 1
fi
# Only these services: Compose would replace those that depend on them too.
services=$("${compose[@]}" config --services | grep -xE 'postgres|backup' | sort -r | xargs)
option="-f $file "
# With -f, Compose would ignore the other files.
if [[ -n ${COMPOSE_FILE:-} ]] || grep -qsE '^\s*(export\s+)?COMPOSE_FILE=' .env; then option=; fi
cat <<MESSAGE
PostgreSQL is stopped. Set in .env
    POSTGRES_IMAGE=$image
    POSTGRES_VOLUME=$volume
and start it: docker compose ${option}up --build --detach $services
Until then PostgreSQL does not start: the old volume is marked, so that it takes no writes that the new one lacks.
To go back: docs/postgres-upgrade.md#go-back
MESSAGE
