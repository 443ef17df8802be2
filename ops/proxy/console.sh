#!/usr/bin/env bash
# Run a command of HAProxy's console, in the container: `docker compose exec proxy console show stat`.
set -euo pipefail
exec 3<>/dev/tcp/127.0.0.1/9999
echo "$*" >&3
cat <&3
