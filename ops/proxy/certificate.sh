#!/usr/bin/env bash
# Use another certificate from now on, in the container: `make certificate`. Reads certificate, chain and key in PEM.
# Connections stay open. After a restart, the proxy reads the certificate from its secrets again.
set -euo pipefail
pem=$(awk NF) # an empty line would end the input
set_answer=$(printf 'set ssl cert @own/site <<\n%s\n\n' "$pem" | console)
commit_answer=$(console commit ssl cert @own/site)
if [[ $commit_answer != *Success* ]]; then
  console abort ssl cert @own/site >/dev/null || true # or else no other certificate could be set
  echo "the proxy refused the certificate: $set_answer $commit_answer" >&2
  exit 1
fi
