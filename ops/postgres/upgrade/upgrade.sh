#!/usr/bin/env bash
# Copy the PostgreSQL cluster of the volume /old to the empty volume /new, in the format of this image's version.
#   upgrade.sh pg_upgrade | dump         do it; the old server must have been stopped
#   upgrade.sh pg_upgrade | dump check   only report what would prevent it; the old server may run
# The old server runs for the copy, but its data is only read. Both clusters are compared, table by table, before /new
# gets its PG_VERSION: until then no server starts on it.
set -euo pipefail
shopt -s nullglob

method=${1:-}
# The old cluster keeps its WAL, also what is written while it is read (hint bits), until its regular server archives it.
# With archive_mode=off it would be removed. That would be a gap in the archive if the old volume is used again.
keep_wal=(-c archive_mode=on -c archive_command=)
work=/new/upgrade.incomplete
data=$work/data
old_port=5417 new_port=5418
jobs=$(nproc)
new=${PG_MAJOR:?the image does not name its version}

fail() {
  echo "upgrade failed: $*" >&2
  exit 1
}
step() { printf '%4d s  %s\n' "$SECONDS" "$1"; }
logged() { "$@" >/tmp/output 2>&1 & wait $!; } # not in the foreground: a signal ends this script at once
quietly() { # Run a command; show what it wrote only if it fails.
  local status=0
  logged "$@" || status=$?
  if ((status != 0)); then
    tail -n 40 /tmp/output >&2
    fail "$(basename "$1") exited with $status"
  fi
}
stop_all() { # whatever happens, the old cluster is left as after a regular stop
  local directory
  kill $(jobs -p) 2>/dev/null || true
  for directory in /old "$data"; do
    if [[ -e $directory/postmaster.pid ]]; then
      "/usr/lib/postgresql/$(<"$directory/PG_VERSION")/bin/pg_ctl" stop --silent --mode fast -D "$directory" || true
    fi
  done
}
control() { "$old_bin/pg_controldata" /old | sed -n "s/^$1: *//p"; }

check() {
  [[ -s /old/PG_VERSION ]] || fail "the old volume has no PostgreSQL data"
  old=$(</old/PG_VERSION)
  ((old < new)) || fail "the old volume has the data of PostgreSQL $old, and this image is of $new: nothing to upgrade"
  old_bin=/usr/lib/postgresql/$old/bin new_bin=/usr/lib/postgresql/$new/bin
  [[ -x $old_bin/postgres ]] ||
    fail "the old volume has the data of PostgreSQL $old; set UPGRADE_FROM_IMAGE to an image of $old"
  local found=(/new/* /new/.[!.]*)
  [[ -e $work ]] || ((${#found[@]} == 0)) ||
    fail "the new volume is not empty: remove it (docker volume rm), if it has nothing that you need"
  local links=(/old/pg_tblspc/*)
  ((${#links[@]} == 0)) || fail "the cluster has tablespaces, which are outside of the volume: upgrade it by hand"
  local needed available # in MB
  # Files of a running server vanish while they are counted.
  needed=$({ du --summarize --block-size=1M /old 2>/dev/null || true; } | cut -f1)
  needed=$((needed * 6 / 5 + 100))
  if [[ $method == dump ]]; then needed=$((needed * 3 / 2)); fi # the dump is there too, compressed
  available=$(df --output=avail --block-size=1M /new | tail -n 1)
  ((available > needed)) || fail "the new volume has $available MB free, and needs $needed MB"
}

start_old() {
  quietly "$old_bin/pg_ctl" start --wait --timeout 3600 --silent -D /old -l /tmp/old.log \
    -o "${options[*]} ${keep_wal[*]} -p $old_port"
}
start_new() {
  quietly "$new_bin/pg_ctl" start --wait --timeout 3600 --silent -D "$data" -l /tmp/new.log \
    -o "${options[*]} -p $new_port $*"
}
stop() { quietly "$1/pg_ctl" stop --wait --timeout 3600 --silent --mode fast -D "$2"; }
run_sql() { "$new_bin/psql" -XAtq -v ON_ERROR_STOP=1 -U "$superuser" -p "$1" -d "$2" "${@:3}"; }
databases() { run_sql "$1" postgres -c "SELECT datname FROM pg_database WHERE datallowconn ORDER BY datname"; }

check_minor_releases() {
  # Security fixes of a minor release can store options of columns. pg_upgrade fails late if the new version is an older
  # release, which does not know them.
  local database option
  databases $old_port | while read -r database; do
    run_sql $old_port "$database" -c "SELECT DISTINCT split_part(unnest(attoptions), '=', 1) FROM pg_attribute"
  done | sort --unique | while read -r option; do
    grep -qaF "$option" "$new_bin/pg_dump" "$new_bin/postgres" ||
      fail "this image of PostgreSQL $new is older than the old server's last release: it does not know $option;" \
        "use a newer image, or method=dump"
  done
}

fingerprint() { # fingerprint PORT: what must be equal in both clusters, as sorted lines of text
  local database
  run_sql "$1" postgres <<'SQL' | LC_ALL=C sort
SELECT 'role', rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,
       rolconnlimit, rolvaliduntil, md5(rolpassword)
FROM pg_authid WHERE rolname !~ '^pg_';
SELECT 'member', member::regrole, roleid::regrole, admin_option FROM pg_auth_members
WHERE member::regrole::text !~ '^pg_';
SELECT 'setting', datname, setrole::regrole, setconfig
FROM pg_db_role_setting LEFT JOIN pg_database ON pg_database.oid = setdatabase;
SELECT 'database', datname, datdba::regrole, pg_encoding_to_char(encoding), datcollate, datctype,
       (SELECT array_agg(item::text ORDER BY item::text) FROM unnest(datacl) AS item)
FROM pg_database WHERE datname !~ '^template';
SQL
  databases "$1" | while read -r database; do
    echo "--- $database"
    run_sql "$1" "$database" <<'SQL' | LC_ALL=C sort
SET search_path = pg_catalog;
SET TimeZone = UTC;
\set own '(SELECT c.oid, c.relkind, c.oid::regclass::text AS name, c.relowner, c.relacl FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname !~ \'^pg_\' AND n.nspname <> \'information_schema\')'
SELECT 'extension', extname FROM pg_extension;
SELECT 'relation', relkind, name, relowner::regrole,
       (SELECT array_agg(item::text ORDER BY item::text) FROM unnest(relacl) AS item)
FROM :own AS own;
SELECT 'index', indisvalid, pg_get_indexdef(indexrelid) FROM pg_index JOIN :own AS own ON own.oid = indexrelid;
SELECT 'constraint', name, conname, convalidated, pg_get_constraintdef(pg_constraint.oid)
FROM pg_constraint JOIN :own AS own ON own.oid = conrelid
WHERE contype <> 'n'; -- NOT NULL is a constraint only since PostgreSQL 18
SELECT 'sequence', schemaname, sequencename, last_value FROM pg_sequences;
SELECT 'large objects', count(*) FROM pg_largeobject_metadata;
-- The checksum of a table is the sum of its rows' hashes: it does not depend on their order.
SELECT format('SELECT %L, %L, count(*), sum(hashtextextended(t::text, 0)::numeric) FROM ONLY %s AS t', 'table', name,
              name)
FROM :own AS own WHERE relkind IN ('r', 'm') \gexec
SQL
  done
}

with_pg_upgrade() {
  # pg_upgrade needs the same setting in both clusters. Checksums of the copy are switched on below.
  local checksums=--data-checksums
  if (($(control 'Data page checksum version') == 0)); then checksums=--no-data-checksums; fi
  quietly "$new_bin/initdb" -D "$data" -U "$superuser" --auth=trust "$checksums"
  local command=("$new_bin/pg_upgrade" --old-bindir "$old_bin" --new-bindir "$new_bin" --old-datadir /old
    --new-datadir "$data" --old-options "${options[*]} ${keep_wal[*]}" --new-options "${options[*]}" --socketdir /tmp
    --username "$superuser" --jobs "$jobs")
  cd "$work"
  # It names the files with the reasons, which vanish with this container.
  logged "${command[@]}" || {
    tail -n 20 /tmp/output >&2
    { find "$data" -path '*pg_upgrade_output.d*' -name '*.txt' -exec cat {} +
      find "$data" -path '*pg_upgrade_output.d*' -name '*.log' -exec grep -h -A 3 'error:' {} +; } >&2 || true
    fail "pg_upgrade did not succeed"
  }
  if [[ $checksums != --data-checksums ]]; then
    step "switching data checksums on"
    quietly "$new_bin/pg_checksums" --enable -D "$data"
  fi
}

with_dump() {
  # The databases that initdb creates get the locale of the old ones. The others bring it with them.
  local encoding collate ctype provider locale
  start_old
  IFS='|' read -r encoding collate ctype provider locale < <(run_sql $old_port postgres -c \
    "SELECT pg_encoding_to_char(encoding), datcollate, datctype, datlocprovider, datlocale FROM pg_database
     WHERE datname = 'postgres'")
  local locales=(--encoding "$encoding" --lc-collate "$collate" --lc-ctype "$ctype")
  case $provider in
    i) locales+=(--locale-provider icu --icu-locale "$locale") ;;
    b) locales+=(--locale-provider builtin --builtin-locale "$locale") ;;
  esac
  quietly "$new_bin/initdb" -D "$data" -U "$superuser" --auth=trust --data-checksums "${locales[@]}"
  start_new -c fsync=off -c full_page_writes=off -c max_wal_size=4GB -c maintenance_work_mem=256MB
  local role database create
  role=$(run_sql $old_port postgres -c "SELECT quote_ident(current_user)")
  # The new cluster has its superuser already.
  "$old_bin/pg_dumpall" -U "$superuser" -p $old_port --roles-only | grep -vxF "CREATE ROLE $role;" >"$work/roles.sql"
  quietly run_sql $new_port postgres --single-transaction -f "$work/roles.sql"
  databases $old_port | while read -r database; do
    create=(--create)
    if [[ $database == postgres || $database == template1 ]]; then create=(); fi
    step "dumping and restoring the database $database"
    # The old pg_dump: it knows everything that its server stores, even if the new version is an older minor release.
    quietly "$old_bin/pg_dump" -U "$superuser" -p $old_port --format directory --jobs "$jobs" --compress lz4 \
      --file "$work/dump" "$database"
    quietly "$new_bin/pg_restore" -U "$superuser" -p $new_port --exit-on-error --jobs "$jobs" "${create[@]}" \
      --dbname "$([[ ${#create[@]} == 0 ]] && echo "$database" || echo postgres)" "$work/dump"
    rm -rf "$work/dump" "$work/roles.sql"
  done
  stop "$new_bin" "$data"
  stop "$old_bin" /old
  quietly "$new_bin/initdb" --sync-only -D "$data"
}

main() {
  check
  if [[ ${1:-} == check ]]; then return; fi
  [[ ! -e /old/postmaster.pid ]] ||
    fail "the old server runs, or was not stopped cleanly: start it once and stop it (docker compose stop postgres)"
  trap stop_all EXIT
  trap 'exit 1' INT TERM
  # Also what an interrupted upgrade has already moved out of $work: without that folder, check() refuses a full volume.
  local entry left=(/new/* /new/.[!.]*)
  if ((${#left[@]} > 0)); then rm -rf "${left[@]}"; fi
  mkdir -p "$work"

  # Ask in single-user mode: only then no name of a role is needed. 10 is the id of the superuser that initdb created.
  superuser=$("$old_bin/postgres" --single -D /old "${keep_wal[@]}" template1 \
    <<<"SELECT rolname FROM pg_authid WHERE oid = 10" 2>/tmp/output |
    sed -n 's/.*rolname = "\(.*\)"\t(typeid.*/\1/p' || true)
  [[ -n $superuser ]] || { tail /tmp/output >&2; fail "the old server does not start"; }
  echo "local all all trust" >/tmp/pg_hba.conf
  options=(-c hba_file=/tmp/pg_hba.conf -c listen_addresses= -c unix_socket_directories=/tmp -c archive_mode=off
    -c autovacuum=off -c jit=off -c synchronous_standby_names=)
  export PGHOST=/tmp PGOPTIONS="-c statement_timeout=0"

  step "reading the checksums of PostgreSQL $old"
  start_old
  if [[ $method == pg_upgrade ]]; then check_minor_releases; fi
  fingerprint $old_port >/tmp/old.txt
  stop "$old_bin" /old

  step "copying the data to PostgreSQL $new ($method)"
  "with_$method"

  step "comparing both"
  start_new
  fingerprint $new_port >/tmp/new.txt
  diff /tmp/old.txt /tmp/new.txt >/tmp/difference || {
    head -n 20 /tmp/difference >&2
    fail "the copy differs from the old cluster (<: old, >: new); the old volume is as it was"
  }
  local count='$1 == "table" { tables++; rows += $3 } END { printf "%d tables, %d rows", tables, rows }'
  step "equal: $(awk -F'|' "$count" /tmp/new.txt)"

  step "updating the planner's statistics"
  quietly "$new_bin/vacuumdb" -U "$superuser" -p $new_port --all --analyze-only --jobs "$jobs"
  stop "$new_bin" "$data"
  # Rules for client connections, and settings of ALTER SYSTEM.
  cp /old/pg_hba.conf /old/pg_ident.conf /old/postgresql.auto.conf "$data/"
  quietly "$new_bin/postgres" -C max_connections -D "$data"

  # PG_VERSION comes last: it makes the volume complete.
  for entry in "$data"/*; do
    if [[ $entry != */PG_VERSION ]]; then mv "$entry" /new/; fi
  done
  mv "$data/PG_VERSION" /new/
  # The old server must not take writes that the new volume lacks: start.sh refuses a volume with this file.
  echo "$new" >/old/upgraded
  rm -rf "$work"
  sync --file-system /new /old
  step "done"
}

case $method in
  pg_upgrade | dump) main "${2:-}" ;;
  *) fail "method must be pg_upgrade or dump, got '$method'" ;;
esac
