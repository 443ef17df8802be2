#!/usr/bin/env bash
# Run a command of HAProxy's console, in the container: `docker compose exec proxy console show stat`. Without arguments,
# read the command from the standard input.
set -euo pipefail
exec 3<>/dev/tcp/127.0.0.1/9999
if (($#)); then echo "$*" >&3; else cat >&3; fi
cat <&3
