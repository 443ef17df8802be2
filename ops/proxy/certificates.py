"""Get certificates from an ACME authority, and give them to the proxy without a restart. Runs in certbot's image.

Environment: TLS_NAMES (host names, separated by commas), ACME_EMAIL, ACME_SERVER (URL of the authority's directory).
The proxy reads the certificate from a volume when it starts. While it runs, it gets a new one on its console.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

# The proxy loads every file in this folder: certificate, chain and key in one.
FOLDER = Path("/var/lib/haproxy")
INSTALLED = FOLDER / "acme.pem"
STATE = FOLDER / "certbot"
CONSOLE = Path("/run/proxy/console.sock")
CHECK_SECONDS = 12 * 3600
# Time that the proxy gets to find this container, which has just started.
FIND_SECONDS = 60
# Waits after failed attempts; after the last one, RARE_SECONDS. Let's Encrypt allows 5 failures, and one more every 12
# minutes. It pauses a name after 1,152 failures without a success, of which it forgets one a day.
RETRY_SECONDS = (20, 60, *[15 * 60] * 8)
RARE_SECONDS = 6 * 3600
# Wait after the proxy has refused a certificate. No authority is asked.
INSTALL_SECONDS = 20


def console(command: str) -> str:
    """Run a command on the proxy's console. Return its answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(CONSOLE))
        connection.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: connection.recv(65_536), b"")).decode()


def obtain(*options: str) -> bool:
    """Obtain the certificate, or renew it if it is due. Return False if that failed; certbot has said why."""
    names = [f"--domain={name.strip()}" for name in os.environ["TLS_NAMES"].split(",") if name.strip()]
    folders = [f"--config-dir={STATE}", "--work-dir=/tmp/certbot", "--logs-dir=/tmp/certbot"]
    challenge = ["--standalone", "--http-01-port=8402"]
    account = ["--agree-tos", f"--email={os.environ['ACME_EMAIL']}", f"--server={os.environ['ACME_SERVER']}"]
    usual = ["--non-interactive", "--keep-until-expiring", "--expand", "--cert-name=proxy"]
    command = ["certbot", "certonly", *usual, *options, *account, *challenge, *folders, *names]
    return subprocess.run(command, check=False).returncode == 0


def install() -> bool:
    """Give the proxy the certificate unless it has it. Return False if the proxy refuses it; its answer is printed."""
    live = STATE / "live" / "proxy"
    pem = (live / "fullchain.pem").read_text() + (live / "privkey.pem").read_text()
    if INSTALLED.exists() and INSTALLED.read_text() == pem:
        return True
    is_new = not INSTALLED.exists()
    new = STATE / "new.pem"
    new.touch(mode=0o600)
    new.write_text(pem)
    preparing = [f"new ssl cert {INSTALLED}"] if is_new else []
    preparing.append(f"set ssl cert {INSTALLED} <<\n{pem}")
    deciding = [f"commit ssl cert {INSTALLED}"]
    if is_new:
        deciding.append(f"add ssl crt-list {FOLDER}/ {INSTALLED}")
    answers = [console(command).strip() for command in (*preparing, *deciding)]
    print(*answers, sep="\n", flush=True)
    if not all("Success" in answer for answer in answers[len(preparing) :]):
        # A transaction that stays open would refuse every later certificate.
        print(console(f"abort ssl cert {INSTALLED}").strip(), flush=True)
        return False
    new.rename(INSTALLED)
    return True


def wait_for_proxy() -> None:
    """Wait until the proxy has found this container by its name: only then does it pass the authority's requests on."""
    for _ in range(FIND_SECONDS):
        try:
            if "MAINT" not in console("show stat acme 4 -1"):
                return
        except OSError:
            pass  # the proxy has not started
        time.sleep(1)


def is_installed() -> bool:
    """Install the certificate. Return False if the proxy refuses it, or has no console at this moment."""
    try:
        return install()
    except OSError as error:
        print(f"the certificate was not installed: {error}", flush=True)
        return False


def main() -> None:
    """Keep the certificate current until the container stops."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    failures = 0
    while True:
        wait_for_proxy()
        if obtain():
            failures = 0
            while not is_installed():
                time.sleep(INSTALL_SECONDS)
            time.sleep(CHECK_SECONDS)
        else:
            wait = RETRY_SECONDS[failures] if failures < len(RETRY_SECONDS) else RARE_SECONDS
            failures += 1
            print(f"the attempt failed; the next one is in {wait} s", flush=True)
            time.sleep(wait)


if __name__ == "__main__":
    main()
