#!/bin/sh
# Start Alertmanager with the receivers that are set. Alertmanager's configuration file cannot read the environment.
#
# Other receivers, such as Slack or PagerDuty: add their blocks to `operators` below. `make test-alert` tries them.
set -eu

config=/tmp/alertmanager.yml
secrets=${SECRETS:-/run/secrets}

fail() { echo "alertmanager does not start: $*" >&2; exit 1; }
quoted() { printf "'%s'" "$(printf '%s' "$1" | sed "s/'/''/g")"; } # a string in YAML
has() { grep -q '[^[:space:]]' "$secrets/$1" 2>/dev/null; }

operators() {
  if has alert_webhook_url; then
    echo "    webhook_configs:"
    echo "      - url_file: $secrets/alert_webhook_url"
  fi
  if [ -n "${ALERT_EMAIL_TO:-}" ]; then
    first=${ALERT_EMAIL_TO%%,*} # Alertmanager sends no message from several addresses
    echo "    email_configs:"
    echo "      - to: $(quoted "$ALERT_EMAIL_TO")"
    echo "        from: $(quoted "${ALERT_EMAIL_FROM:-$first}")"
    echo "        smarthost: $(quoted "$ALERT_SMTP_SERVER")"
    # Port 465 has TLS from the first byte. Alertmanager's `require_tls` demands STARTTLS.
    case $ALERT_SMTP_SERVER in *:465) echo "        require_tls: false" ;; *) echo "        require_tls: true" ;; esac
    echo "        send_resolved: true"
    echo "        headers:"
    echo "          Subject: '[{{ .Status }}] {{ .CommonLabels.alertname }}{{ with .CommonAnnotations.summary }}: {{ . }}{{ end }}'"
    if [ -n "${ALERT_SMTP_USER:-}" ]; then
      echo "        auth_username: $(quoted "$ALERT_SMTP_USER")"
      echo "        auth_password_file: $secrets/alert_smtp_password"
    fi
  fi
}

watchdog() {
  if has alert_watchdog_url; then
    echo "    webhook_configs:"
    echo "      - url_file: $secrets/alert_watchdog_url"
    echo "        send_resolved: false"
  fi
}

if [ -n "${ALERT_EMAIL_TO:-}" ] && [ -z "${ALERT_SMTP_SERVER:-}" ]; then
  fail "ALERT_EMAIL_TO is set, but ALERT_SMTP_SERVER is not; set it to HOST:PORT"
fi
if [ -n "${ALERT_EMAIL_TO:-}" ] && [ -n "${ALERT_SMTP_USER:-}" ] && ! has alert_smtp_password; then
  fail "ALERT_SMTP_USER is set, but the secret alert_smtp_password is empty; write the password to it"
fi
case ${ALERT_EMAIL_FROM:-} in *,*) fail "ALERT_EMAIL_FROM has several addresses; set it to one" ;; esac
if [ -z "$(operators)" ]; then
  echo "No receiver is set: alerts reach no person. Set ALERT_EMAIL_TO and ALERT_SMTP_SERVER, or write a URL to" \
    "the secret alert_webhook_url (docs/production.md#alerts)." >&2
fi

{
  cat /etc/alertmanager/alertmanager.yml
  echo "receivers:"
  echo "  - name: operators"
  operators
  echo "  - name: none"
  echo "  - name: watchdog"
  watchdog
} >"$config"
checked=$(amtool check-config "$config" 2>&1) || fail "$checked"

exec /bin/alertmanager --config.file="$config" "$@"
