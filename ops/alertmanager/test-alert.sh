#!/bin/sh
# Send an alert to every receiver, in the container: `make test-alert`. Succeeds when all receivers have accepted it.
set -eu

url=http://127.0.0.1:9093
tried=alertmanager_notification_requests_total
failed=alertmanager_notification_requests_failed_total
receivers=$(sed -n '/^  - name: operators/,/^  - name: none/s/^    \([a-z]*\)_configs:/\1/p' /tmp/alertmanager.yml)
if [ -z "$receivers" ]; then
  echo "no receiver is set: set ALERT_EMAIL_TO and ALERT_SMTP_SERVER, or write a URL to the secret alert_webhook_url" >&2
  exit 1
fi

count() { # count METRIC RECEIVER: attempts to deliver to this kind of receiver
  wget -q -O - "$url/metrics" | awk -v "metric=$1{" -v "kind=integration=\"$2\",receiver_name=\"operators\"" \
    'index($0, metric) == 1 && index($0, kind) { print $NF }'
}

now=$(date +%s)
for receiver in $receivers; do
  export "tried_$receiver=$(count "$tried" "$receiver")" "failed_$receiver=$(count "$failed" "$receiver")"
done
amtool --alertmanager.url="$url" alert add TestAlert severity=warning "instance=test-$now-$$" \
  --annotation='summary="This is a test."' --annotation='description="An operator ran make test-alert. Nothing is wrong."' \
  --end="$(date -u -d "@$((now + 60))" +%Y-%m-%dT%H:%M:%SZ)"

status=0
for receiver in $receivers; do
  while [ "$(count "$tried" "$receiver")" = "$(printenv "tried_$receiver")" ]; do
    if [ "$(date +%s)" -gt $((now + 60)) ]; then break; fi
    sleep 1
  done
  if [ "$(count "$tried" "$receiver")" = "$(printenv "tried_$receiver")" ]; then
    echo "$receiver: no attempt within 60 s; read the log of the service alertmanager" >&2
    status=1
  elif [ "$(count "$failed" "$receiver")" != "$(printenv "failed_$receiver")" ]; then
    echo "$receiver: failed; the log of the service alertmanager has the reason" >&2
    status=1
  else
    echo "$receiver: accepted"
  fi
done
exit "$status"
