"""Rotate the secrets of compose.prod.yml, one at a time, without a lost request.

Two values of a secret must be valid while its users change to the new one:
- The API connects as `headroom_app` or `headroom_app_2`, which have the same privileges. A rotation gives
  the one that is not in use a new password, replaces the replicas, and removes the password of the other one. On a
  server elsewhere, the job `roles` does this as its administrator, and PgBouncer has both passwords in its file.
- PgBouncer looks up passwords as `headroom_pgbouncer_2` while `headroom_pgbouncer` gets its new password.
- A standby streams on with the old password, and reads the new one from a file when it connects again.
- The signing key has SECRET_KEY_FALLBACKS next to it.
The other secrets are not used by the API.
"""

import base64
import hashlib
import hmac
import os
import re
import secrets
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

from ops.deploy.errors import DeployFailed
from ops.deploy.operations import (
    check_secrets,
    check_surge,
    discard,
    next_number,
    roll_out,
    wait_until_healthy,
)
from ops.deploy.releases import Model, Release
from ops.deploy.stack import Stack
from ops.deploy.timeline import Timeline

SCRAM_ITERATIONS = 4096
NO_KEYS = "\n"  # Swarm refuses an empty file
API_ROLES = ("headroom_app", "headroom_app_2")
LOOKUP_ROLES = ("headroom_pgbouncer", "headroom_pgbouncer_2")  # of PgBouncer, with the privileges of the first
_PGBOUNCER_CONSOLE = ("psql", "-qAt", "-h", "/run/headroom-pgbouncer", "-p", "6432", "-U", "pgbouncer", "pgbouncer")
_USERS_FILE = "/run/headroom-pgbouncer/userlist.txt"
# standby.sh writes this file at the start. The server reads it whenever it connects to the primary.
_STANDBY_PASSWORDS = "/tmp/replication.pgpass"  # noqa: S108 - in the container, of memory
_STANDBY_SIGN_IN = (
    "psql",
    "-qAtX",
    f"host=postgres port=5432 user=headroom_replication passfile={_STANDBY_PASSWORDS} replication=true",
    "-c",
    "IDENTIFY_SYSTEM",
)
# Of the file that follow.sh writes when the container starts.
_WRITE_LOOKUP_ROLE = 'sed -i "s/^auth_user = .*/auth_user = $1/" /run/headroom-pgbouncer/pgbouncer.ini'


class SecretFiles:
    """The files of a Compose file's secrets."""

    def __init__(self, model: Model) -> None:
        self._files = {name: Path(each["file"]) for name, each in model["secrets"].items() if "file" in each}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def path(self, name: str) -> Path:
        """Return the file of a secret. Raise DeployFailed if the Compose file has no such secret."""
        if name not in self._files:
            raise DeployFailed(f"the Compose file has no secret {name}")
        return self._files[name]

    def read(self, name: str) -> str:
        """Return the value of a secret."""
        return self.path(name).read_text(encoding="utf-8").strip()

    def write(self, name: str, value: str) -> None:
        """Replace the value of a secret. Containers see it when they start."""
        path = self.path(name)
        new = path.with_name(f"{path.name}.new")
        new.unlink(missing_ok=True)
        new.write_text(value, encoding="utf-8")
        new.chmod(0o444)
        new.replace(path)

    def replaced(self, **values: str) -> "Replacement":
        """Return a block that replaces secrets, and restores them if it fails."""
        return Replacement(self, values)

    def with_password(self, name: str, password: str, role: str = "") -> str:
        """Return the URL in a secret with another password, and with another role if one is given."""
        replaced, number = re.subn(
            r"://([^:@/]+):[^@/]*@", lambda found: f"://{role or found[1]}:{password}@", self.read(name), count=1
        )
        if not number:
            raise DeployFailed(f"{self.path(name)}: must be a URL with a role and a password")
        return replaced

    def role_of(self, name: str) -> str:
        """Return the role in the URL of a secret."""
        found = re.search(r"://([^:@/]+):", self.read(name))
        return found[1] if found else ""


class Replacement:
    """A block that replaces secrets. If it fails, they are restored, unless they are kept: replicas use them then."""

    def __init__(self, files: SecretFiles, values: dict[str, str]) -> None:
        self._files = files
        self._values = values
        self._before = {name: files.path(name).read_text(encoding="utf-8") for name in values}
        self.is_kept = False

    def __enter__(self) -> Self:
        try:
            self._write(self._values)
        except BaseException:
            self.restore()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self.is_kept:
            self.restore()

    def keep(self) -> None:
        """Keep the new secrets, whatever happens in the rest of the block."""
        self.is_kept = True

    def restore(self) -> None:
        """Write the secrets of before."""
        self.is_kept = False
        self._write(self._before)

    def _write(self, values: dict[str, str]) -> None:
        for name, value in values.items():
            self._files.write(name, value)


def new_password() -> str:
    """Return a random password. It is hexadecimal, which needs no quoting in a URL or in SQL."""
    return secrets.token_hex(24)


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """Return what PostgreSQL stores for a password, so that the password itself is in no statement and no log."""
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt_text, stored_text, server_text = (base64.b64encode(each).decode() for each in (salt, stored, server))
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt_text}${stored_text}:{server_text}"


class Rotation:
    """Rotates the secrets of a stack."""

    def __init__(self, stack: Stack, timeline: Timeline) -> None:
        self._stack = stack
        self._timeline = timeline
        self._is_elsewhere = "postgres" not in stack.model["services"]
        self._has_pgbouncer = "pgbouncer" in stack.model["services"]
        self._files = SecretFiles(stack.model_with_jobs() if self._is_elsewhere else stack.model)

    @property
    def kinds(self) -> dict[str, Callable[[], None]]:
        """Return how to rotate each secret, by its name."""
        return {
            "superuser_password": self._superuser,
            "owner_password": self._owner,
            "app_password": self._app,
            "monitor_password": self._monitor,
            "pgbouncer_password": self._pgbouncer,
            "console_password": self._console,
            "replication_password": self._replication,
            "secret_key": self._secret_key,
            "secret_key_fallbacks": self._secret_key_fallbacks,
            "tls_certificate": self._tls_certificate,
        }

    def rotate(self, name: str) -> None:
        """Rotate a secret. Raise DeployFailed, with the old value in use."""
        if name not in self.kinds:
            raise DeployFailed(f"secret: must be one of {', '.join(self.kinds)}, got {name or 'nothing'}")
        check_secrets(self._stack.model)
        if self._is_elsewhere and name.endswith("_password"):
            self._check_elsewhere(name)
        self.kinds[name]()
        self._timeline.add("done", f"{name} is rotated")

    def _check_elsewhere(self, name: str) -> None:
        if name in ("superuser_password", "pgbouncer_password", "replication_password"):
            raise DeployFailed(f"{name}: a PostgreSQL server elsewhere has no role with it")
        if name == "console_password":
            if not self._has_pgbouncer:
                raise DeployFailed(f"{name}: the Compose file has no service pgbouncer")
            return
        administrator = self._files.path("admin_password")
        if not (administrator.is_file() and administrator.stat().st_size):
            raise DeployFailed(
                f"{administrator} is missing: write the password of the server's administrator to it, which sets those"
                " of the roles (docs/external-postgres.md)"
            )

    # --- passwords of roles

    def _superuser(self) -> None:
        password = new_password()
        with self._files.replaced(superuser_password=password):
            self._set_password("postgres", password)

    def _owner(self) -> None:
        current = self._current()
        password = new_password()
        url = self._files.with_password("migration_database_url", password)
        with self._files.replaced(owner_password=password, migration_database_url=url):
            self._set_password("headroom_owner", password)
        self._stack.run(current, "migrate", "alembic", "current")
        self._timeline.add("check", "the migration job can sign in")

    def _monitor(self) -> None:
        current = self._current()
        password = new_password()
        urls_of_role = ("monitor_database_url", "pgbouncer_admin_url", "monitor_read_url")
        names = [name for name in urls_of_role if name in self._files]
        urls = {name: self._files.with_password(name, password) for name in names}
        with self._files.replaced(monitor_password=password, **urls):
            self._set_password("headroom_monitor", password)
        self._update_users()
        self._stack.replace(current, "exporter")
        wait_until_healthy(self._stack, "exporter")
        self._timeline.add("exporter", "replaced")

    def _app(self) -> None:
        current = self._current()
        used = self._files.role_of("database_url")
        if used not in API_ROLES:
            raise DeployFailed(f"database_url: must name the role {' or '.join(API_ROLES)}, got {used or 'none'}")
        [other] = [role for role in API_ROLES if role != used]
        self._create_roles()
        if self._has_pgbouncer:
            self._pgbouncer_console(f"SET stats_users = '{', '.join(API_ROLES)}, headroom_monitor'")
        old, password = self._files.read("app_password"), new_password()
        self._set_password(other, password)
        names = [name for name in ("database_url", "database_read_url") if name in self._files]
        urls = {name: self._files.with_password(name, password, other) for name in names}
        new = self._files.replaced(app_password=password, **urls)
        try:
            with new:
                self._update_users(**{used: old})
                self._replace_replicas(new)
        finally:
            if new.is_kept or {replica.release for replica in self._stack.replicas()} <= {current.number}:
                self._remove_password(used if new.is_kept else other)
                self._update_users()
            else:
                self._timeline.add("password", f"{used} and {other} have one: replicas of two releases are left")

    def _pgbouncer(self) -> None:
        """Let PgBouncer look up passwords as a second role while the password of the first one is replaced."""
        old, new, other = self._files.read("pgbouncer_password"), new_password(), new_password()
        self._create_roles()
        try:
            self._set_password(LOOKUP_ROLES[1], other)
            self._write_users(**{LOOKUP_ROLES[1]: other})
            self._look_up_as(LOOKUP_ROLES[1])
            with self._files.replaced(pgbouncer_password=new):
                self._set_password(LOOKUP_ROLES[0], new)
                self._write_users()
                self._look_up_as(LOOKUP_ROLES[0])
        except BaseException:
            self._set_password(LOOKUP_ROLES[0], old)
            self._write_users()
            self._look_up_as(LOOKUP_ROLES[0])
            self._remove_password(LOOKUP_ROLES[1])
            raise
        # Not in a `finally`: if the old state cannot be restored, PgBouncer may still use the second role.
        self._remove_password(LOOKUP_ROLES[1])

    def _console(self) -> None:
        password = new_password()
        url = self._files.with_password("pgbouncer_console_url", password)
        with self._files.replaced(console_password=password, pgbouncer_console_url=url):
            self._write_users()
            self._reload_pgbouncer()

    def _replication(self) -> None:
        """Replace the password of the standby's role. A standby that is stopped reads the secret when it starts."""
        old, new = self._files.read("replication_password"), new_password()
        try:
            with self._files.replaced(replication_password=new):
                self._set_replication_password(new)
        except BaseException:
            self._set_replication_password(old)
            raise

    def _set_replication_password(self, password: str) -> None:
        self._set_password("headroom_replication", password)
        standbys = self._stack.containers("standby")
        for standby in standbys:
            entry = f"*:*:*:headroom_replication:{password}\n"
            self._write_file(standby, _STANDBY_PASSWORDS, entry)
        for standby in standbys:
            self._stack.execute(standby, *_STANDBY_SIGN_IN)
            self._timeline.add("check", "the standby can sign in")

    def _set_password(self, role: str, password: str) -> None:
        self._sql(f"ALTER ROLE {role} PASSWORD '{scram_verifier(password)}'")
        self._timeline.add("password", f"{role} has a new one")

    def _create_roles(self) -> None:
        """Create the roles that a database of an earlier version lacks."""
        self._sql((self._stack.root / "ops/postgres/roles.sql").read_text(encoding="utf-8"))

    def _remove_password(self, role: str) -> None:
        self._sql(f"ALTER ROLE {role} PASSWORD NULL")
        self._timeline.add("password", f"{role} has none any more")

    def _sql(self, statements: str) -> None:
        """Run statements as the superuser, inside the container of PostgreSQL; elsewhere, as the administrator."""
        if self._is_elsewhere:
            self._stack.run_job("roles", "-", stdin=statements)
            return
        psql = ("psql", "-qX", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-U", "postgres", "-d", "headroom")
        self._stack.execute(self._stack.container("postgres"), *psql, "-f", "-", stdin=statements)

    def _pgbouncer_console(self, command: str) -> None:
        self._stack.execute(self._stack.container("pgbouncer"), *_PGBOUNCER_CONSOLE, "-c", command)

    def _update_users(self, **others: str) -> None:
        """Give PgBouncer the passwords of the secrets, and others for some users, if the server is elsewhere."""
        if self._is_elsewhere and self._has_pgbouncer:
            self._write_users(**others)
            self._reload_pgbouncer()

    def _write_users(self, **others: str) -> None:
        """Write the passwords for PgBouncer to its file, as entrypoint.sh does at its start."""
        if self._is_elsewhere:
            secrets_of = dict.fromkeys(API_ROLES, "app_password") | {"headroom_monitor": "monitor_password"}
        else:
            secrets_of = {"headroom_pgbouncer": "pgbouncer_password"}
        secrets_of |= {"headroom_console": "console_password"}
        passwords = {user: self._files.read(name) for user, name in secrets_of.items()} | others
        lines = [f'"{user}" "{password.replace(chr(34), chr(34) * 2)}"' for user, password in passwords.items()]
        self._write_file(self._stack.container("pgbouncer"), _USERS_FILE, "\n".join(lines) + "\n")

    def _write_file(self, container: str, file: str, text: str) -> None:
        """Replace a file with passwords in a container. At once: its program may read it at any time."""
        script = f"umask 077 && cat >{file}.new && mv {file}.new {file}"
        self._stack.execute(container, "sh", "-c", script, stdin=text)

    def _look_up_as(self, role: str) -> None:
        """Let PgBouncer look up passwords as this role. A restart goes back to the role of its configuration.

        `SET auth_user` would not do: a database keeps the role of its last look-up until RELOAD.
        """
        self._stack.execute(self._stack.container("pgbouncer"), "sh", "-c", _WRITE_LOOKUP_ROLE, "sh", role)
        self._reload_pgbouncer()

    def _reload_pgbouncer(self) -> None:
        self._pgbouncer_console("RELOAD")
        self._timeline.add("pgbouncer", "reloaded")

    # --- the signing key

    def _secret_key(self) -> None:
        old, new = self._files.read("secret_key"), secrets.token_hex(32)
        # First every replica must accept the new key, then one may sign with it.
        with self._files.replaced(secret_key_fallbacks=new) as replacement:
            self._replace_replicas(replacement)
        with self._files.replaced(secret_key=new, secret_key_fallbacks=old) as replacement:
            self._replace_replicas(replacement)
        self._timeline.add("key", "tokens of the old key stay valid until make rotate secret=secret_key_fallbacks")

    def _secret_key_fallbacks(self) -> None:
        with self._files.replaced(secret_key_fallbacks=NO_KEYS) as replacement:
            self._replace_replicas(replacement)

    # --- the certificate

    def _tls_certificate(self) -> None:
        certificate, key = self._files.path("tls_certificate"), self._files.path("tls_key")
        authority = certificate.with_name("tls_ca_certificate")
        if not authority.is_file() or not _succeeds("openssl", "verify", "-CAfile", str(authority), str(certificate)):
            raise DeployFailed(
                f"{certificate} is not of our own authority: replace it and {key.name}, then run make certificate"
            )
        names = subprocess.run(
            ["openssl", "x509", "-in", str(certificate), "-noout", "-ext", "subjectAltName"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        host = re.findall(r"(?:DNS|IP Address):([^,\s]+)", names)[0]
        with self._files.replaced(tls_certificate="", tls_key=""):
            script = str(self._stack.root / "ops/make-secrets.sh")
            made = subprocess.run([script, str(certificate.parent), host], capture_output=True, text=True, check=False)
            if made.returncode != 0:
                raise DeployFailed(f"make-secrets.sh: {made.stderr.strip()}")
            pem = "".join(f"{self._files.read(name)}\n" for name in ("tls_certificate", "tls_key"))
            self._stack.execute(self._stack.container("proxy"), "certificate", stdin=pem)
        self._timeline.add("certificate", f"for {host}, in use")

    # --- replicas

    def _current(self) -> Release:
        current = self._stack.current()
        if current is None:
            raise DeployFailed("no deploy has succeeded yet: make deploy")
        return current

    def _replace_replicas(self, replacement: Replacement) -> None:
        """Replace all replicas by new ones of the same release, which read the new secrets.

        If that fails, restore the secrets before replicas start again: they would read the new ones.
        """
        current = self._current()
        missing = [name for name in self._stack.model["secrets"] if name.startswith("secret_key")]
        if not set(missing) <= set(current.model["secrets"]):
            raise DeployFailed(f"{current} is too old for this: make deploy first")
        # It takes the place of the current one: a rollback goes to the release before, not to the old secret.
        release = replace(current, number=next_number(self._stack))
        check_surge(release)
        self._stack.label(release, current.image)
        roll_out(self._stack, self._timeline, release, current, restore=replacement.restore, serves=replacement.keep)
        discard(self._stack, current)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
