#!/bin/sh
# As in the official image: HAProxy runs in the foreground, with a master process that can reload it (SIGHUP).
set -eu
case ${1:-} in -*) set -- haproxy "$@" ;; esac
if [ "${1:-}" = haproxy ]; then
  shift
  set -- haproxy -W -db "$@"
fi
exec "$@"
