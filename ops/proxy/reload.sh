#!/usr/bin/env bash
# Load the configuration again, in the container: `docker compose exec proxy reload`. The new process begins with the
# addresses of the replicas; otherwise it would have none until its first answer from DNS.
set -euo pipefail
haproxy -c -q -f /usr/local/etc/haproxy/haproxy.cfg
console show servers state >/run/haproxy/servers
kill -HUP 1
