"""The files and roles that a rotation changes and restores. tests/fault rotates secrets of a running stack."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ops.deploy.errors import DeployFailed, Interrupted
from ops.deploy.operations import deploy, rollback
from ops.deploy.releases import Model, Release
from ops.deploy.rotation import Rotation, scram_verifier
from ops.deploy.timeline import Timeline
from tests.support.fake_stack import FakeStack

SECRETS = {
    "superuser_password": "p0",
    "owner_password": "p1",
    "app_password": "p2",
    "monitor_password": "p3",
    "pgbouncer_password": "p4",
    "console_password": "p5",
    "replication_password": "p7",
    "secret_key": "old",
    "secret_key_fallbacks": "\n",
    "database_url": "postgresql+psycopg://headroom_app:p2@pgbouncer:6432/headroom",
    "migration_database_url": "postgresql+psycopg://headroom_owner:p1@postgres:5432/headroom",
    "monitor_database_url": "postgresql+psycopg://headroom_monitor:p3@postgres:5432/headroom",
    "database_read_url": "postgresql+psycopg://headroom_app:p2@standby:5432/headroom",
    "monitor_read_url": "postgresql+psycopg://headroom_monitor:p3@standby:5432/headroom",
    "pgbouncer_admin_url": "postgresql+psycopg://headroom_monitor:p3@pgbouncer:6432/pgbouncer",
    "pgbouncer_console_url": "postgresql+psycopg://headroom_console:p5@pgbouncer:6432/pgbouncer",
}


class RotatingStack(FakeStack):
    """A stack with secrets. `seen` has the value of a secret whenever replicas were replaced, and statements."""

    def __init__(self, root: Path, watched: str = "database_url") -> None:
        super().__init__(root)
        self.folder = root / "secrets"
        self.folder.mkdir()
        for name, value in SECRETS.items():
            (self.folder / name).write_text(value)
        (root / "ops/postgres").mkdir(parents=True)
        (root / "ops/postgres/roles.sql").write_text("the roles")
        self.model["secrets"] = {name: {"file": str(self.folder / name)} for name in SECRETS}
        self.model["services"] |= {"postgres": {}, "pgbouncer": {}}
        self.watched = watched.split()
        self.seen: list[str] = []
        self.fails: Callable[[str], bool] = lambda statement: False
        first = Release("p", 1, "one", self.model)
        self.label(first, "")
        self.set_current(first)
        self.start(first, 2)

    def secret(self, name: str) -> str:
        return (self.folder / name).read_text()

    def container(self, service: str) -> str:
        return service

    def start_replicas(self, release: Release, number: int) -> None:
        super().start_replicas(release, number)
        self.seen.append(" ".join(f"{name}={self.secret(name).strip()}" for name in self.watched))

    def execute(self, container: str, *command: str, stdin: str | None = None) -> str:
        if container in ("postgres", "pgbouncer", "standby", "standby-2"):
            text = stdin or command[-1]
            statement = re.sub(r"'SCRAM.*'", "...", text).strip()
            self.seen.append(statement)
            if self.fails(statement):
                raise DeployFailed("no")
            return ""
        return super().execute(container, *command, stdin=stdin)


class StackElsewhere(RotatingStack):
    """The same, with a PostgreSQL server elsewhere. `pooled`: with our PgBouncer."""

    def __init__(self, root: Path, *, pooled: bool = True) -> None:
        super().__init__(root)
        (self.folder / "admin_password").write_text("p6")
        del self.model["services"]["postgres"]
        if not pooled:
            del self.model["services"]["pgbouncer"]
            for name in ("console_password", "pgbouncer_admin_url", "pgbouncer_console_url"):
                del self.model["secrets"][name]

    def model_with_jobs(self) -> Model:
        secrets = self.model["secrets"] | {"admin_password": {"file": str(self.folder / "admin_password")}}
        return self.model | {"secrets": secrets}

    def run_job(self, service: str, *command: str, stdin: str) -> str:
        assert (service, command) == ("roles", ("-",))
        return self.execute("postgres", stdin=stdin)


def rotate(stack: RotatingStack, name: str) -> None:
    Rotation(stack, Timeline("rotate", stack.root / "log")).rotate(name)


def test_scram_verifier_is_that_of_rfc_7677() -> None:
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    salt = "W22ZaJ0SNY7soEsUEjb6gQ=="
    exchange = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s={salt},i=4096,c=biws,r={nonce}".encode()

    verifier = scram_verifier("pencil", base64.b64decode(salt))

    start, stored, server = re.split(r"\$(?=[^:]*:[^:]*$)|:(?=[^:]*$)", verifier)
    assert start == f"SCRAM-SHA-256$4096:{salt}"
    signature = hmac.digest(base64.b64decode(server), exchange, "sha256")
    assert base64.b64encode(signature) == b"6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    mask = hmac.digest(base64.b64decode(stored), exchange, "sha256")
    client_key = bytes(one ^ other for one, other in zip(proof, mask, strict=True))
    assert hashlib.sha256(client_key).digest() == base64.b64decode(stored)


def test_password_of_the_api_changes_its_role(tmp_path: Path) -> None:
    """Both roles can sign in while the replicas are replaced."""
    stack = RotatingStack(tmp_path)
    rotate(stack, "app_password")

    password = stack.secret("app_password")
    url = f"postgresql+psycopg://headroom_app_2:{password}@pgbouncer:6432/headroom"
    assert password != "p2"
    assert stack.secret("database_read_url") == f"postgresql+psycopg://headroom_app_2:{password}@standby:5432/headroom"
    assert stack.seen == [
        "the roles",
        "SET stats_users = 'headroom_app, headroom_app_2, headroom_monitor'",
        "ALTER ROLE headroom_app_2 PASSWORD ...",
        f"database_url={url}",
        f"database_url={url}",
        "ALTER ROLE headroom_app PASSWORD NULL",
    ]
    assert stack.releases_of_replicas() == [2, 2]

    rotate(stack, "app_password")
    assert "://headroom_app:" in stack.secret("database_url")


def test_failed_rotation_restores_secrets_and_replicas(tmp_path: Path) -> None:
    stack = RotatingStack(tmp_path)
    serving = stack.replicas()
    stack.model["x-deploy"]["ready_seconds"] = "0"
    stack.broken = {"one"}  # new replicas too; the old ones are not looked at

    with pytest.raises(DeployFailed, match="was not ready after 0 s"):
        rotate(stack, "app_password")
    assert {name: stack.secret(name) for name in SECRETS} == SECRETS
    assert stack.seen[-1] == "ALTER ROLE headroom_app_2 PASSWORD NULL"
    assert stack.replicas() == serving


@pytest.mark.parametrize("error", [DeployFailed("no"), Interrupted()])
def test_password_that_replicas_use_stays_if_the_exporter_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    stack = RotatingStack(tmp_path)
    stack.model["services"]["exporter"] = {}

    def fail(release: Release, service: str) -> None:
        raise error

    monkeypatch.setattr(stack, "replace", fail)
    with pytest.raises(type(error)):
        rotate(stack, "app_password")
    assert stack.releases_of_replicas() == [2, 2]
    assert "://headroom_app_2:" in stack.secret("database_url")
    assert stack.seen[-1] == "ALTER ROLE headroom_app PASSWORD NULL"


def test_password_stays_while_a_replica_that_uses_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rotation fails, and so does going back."""
    stack = RotatingStack(tmp_path)

    def start_one(release: Release, number: int) -> None:
        if 2 in stack.releases_of_replicas():
            raise DeployFailed("no")
        stack.start(release, number)

    monkeypatch.setattr(stack, "start_replicas", start_one)
    with pytest.raises(DeployFailed, match="and going back to release 1"):
        rotate(stack, "app_password")
    assert 2 in stack.releases_of_replicas()
    assert "PASSWORD NULL" not in "".join(stack.seen)


def test_replica_that_starts_again_reads_the_restored_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old replica has been replaced when the rotation fails. The new role has no password afterwards."""
    stack = RotatingStack(tmp_path)
    start = stack.start_replicas

    def start_one(release: Release, number: int) -> None:
        if release.number == 2 and 2 in stack.releases_of_replicas():
            raise DeployFailed("no")
        start(release, number)

    monkeypatch.setattr(stack, "start_replicas", start_one)
    with pytest.raises(DeployFailed):
        rotate(stack, "app_password")
    assert stack.seen[-2:] == [
        f"database_url={SECRETS['database_url']}",
        "ALTER ROLE headroom_app_2 PASSWORD NULL",
    ]
    assert stack.releases_of_replicas() == [1, 1]


def test_signing_key_is_accepted_before_it_signs(tmp_path: Path) -> None:
    """A token of a new replica must be valid on an old one, and the other way round."""
    stack = RotatingStack(tmp_path, "secret_key secret_key_fallbacks")
    rotate(stack, "secret_key")

    new = stack.secret("secret_key")
    first, second = f"secret_key=old secret_key_fallbacks={new}", f"secret_key={new} secret_key_fallbacks=old"
    assert stack.seen == [first, first, second, second]

    rotate(stack, "secret_key_fallbacks")
    assert stack.seen[4:] == [f"secret_key={new} secret_key_fallbacks="] * 2


def test_failed_second_step_keeps_both_keys_of_the_first(tmp_path: Path) -> None:
    stack = RotatingStack(tmp_path, "secret_key")
    started = 0
    start = stack.start_replicas

    def start_and_fail_later(release: Release, number: int) -> None:
        nonlocal started
        started += 1
        if started == 3:
            raise DeployFailed("no")
        start(release, number)

    stack.start_replicas = start_and_fail_later  # type: ignore[method-assign]
    with pytest.raises(DeployFailed):
        rotate(stack, "secret_key")
    assert stack.secret("secret_key") == "old"
    assert stack.releases_of_replicas() == [2, 2]


class StackWithLookups(RotatingStack):
    """PostgreSQL and PgBouncer, as far as PgBouncer's look-ups of passwords concern them.

    After each statement, PgBouncer must have a role, and the password of that role, with which it can sign in.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.passwords: dict[str, str | None] = {"headroom_pgbouncer": "p4"}
        self.file = self.loaded = {"headroom_pgbouncer": "p4"}
        self.user = self.written_user = "headroom_pgbouncer"

    def execute(self, container: str, *command: str, stdin: str | None = None) -> str:
        statement = stdin or command[-1]
        super().execute(container, *command, stdin=stdin)
        if found := re.fullmatch(r"ALTER ROLE (\w+) PASSWORD (?:'(\w+)'|NULL)", statement):
            self.passwords[found[1]] = found[2]
        elif container == "pgbouncer" and stdin:
            self.file = dict(re.findall(r'"(\w+)" "(\w+)"', stdin))
        elif statement == "RELOAD":
            self.loaded, self.user = self.file, self.written_user
        elif container == "pgbouncer":
            assert statement.startswith("headroom_pgbouncer"), "written to the configuration"
            self.written_user = statement
        assert self.loaded[self.user] == self.passwords[self.user], statement
        return ""


@pytest.fixture
def _plain_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put passwords into statements, not their verifiers."""
    monkeypatch.setattr("ops.deploy.rotation.scram_verifier", lambda password: password)


@pytest.fixture
def lookups(tmp_path: Path, _plain_passwords: None) -> StackWithLookups:
    return StackWithLookups(tmp_path)


def test_pgbouncer_can_sign_in_at_each_step_of_its_rotation(lookups: StackWithLookups) -> None:
    rotate(lookups, "pgbouncer_password")

    password = lookups.secret("pgbouncer_password")
    assert password != "p4"
    assert lookups.passwords == {"headroom_pgbouncer": password, "headroom_pgbouncer_2": None}
    assert lookups.loaded == lookups.file == {"headroom_pgbouncer": password, "headroom_console": "p5"}
    assert lookups.seen[0] == "the roles"  # a database of an earlier version has no second one


@pytest.mark.parametrize("failing", range(9))
def test_pgbouncer_can_sign_in_if_its_rotation_fails(lookups: StackWithLookups, failing: int) -> None:
    lookups.fails = lambda statement: len(lookups.seen) == failing + 1

    with pytest.raises(DeployFailed):
        rotate(lookups, "pgbouncer_password")
    assert lookups.secret("pgbouncer_password") == "p4"
    assert lookups.passwords["headroom_pgbouncer"] == lookups.loaded["headroom_pgbouncer"] == "p4"
    assert not lookups.passwords.get("headroom_pgbouncer_2")


@pytest.mark.parametrize("failing", range(9))
def test_pgbouncer_can_sign_in_if_the_old_state_is_not_restored(lookups: StackWithLookups, failing: int) -> None:
    """The server may be gone for two statements. The second role keeps its password while PgBouncer uses it."""
    lookups.fails = lambda statement: len(lookups.seen) in (failing + 1, failing + 2)

    with pytest.raises(DeployFailed):
        rotate(lookups, "pgbouncer_password")
    assert lookups.loaded[lookups.user] == lookups.passwords[lookups.user]


class StackWithStandbys(RotatingStack):
    """A primary and two standbys. `passwords` has the role's password, and those in the files of the standbys."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.running = ["standby", "standby-2"]
        self.passwords = dict.fromkeys(["postgres", *self.running], "p7")

    def containers(self, service: str, *, stopped: bool = False) -> list[str]:
        return [*self.running] if service == "standby" else super().containers(service, stopped=stopped)

    def execute(self, container: str, *command: str, stdin: str | None = None) -> str:
        if found := re.search(r"'(\w+)'$|headroom_replication:(\w+)\n$", stdin or ""):
            self.passwords[container] = found[1] or found[2]
        return super().execute(container, *command, stdin=stdin)  # may fail, after the effect


@pytest.fixture
def standbys(tmp_path: Path, _plain_passwords: None) -> StackWithStandbys:
    return StackWithStandbys(tmp_path)


def test_standbys_get_the_new_password_and_sign_in(standbys: StackWithStandbys) -> None:
    rotate(standbys, "replication_password")

    password = standbys.secret("replication_password")
    assert password != "p7"
    assert set(standbys.passwords.values()) == {password}
    assert standbys.seen.count("IDENTIFY_SYSTEM") == 2


@pytest.mark.parametrize("failing", range(5))
def test_standbys_have_their_password_if_the_rotation_fails(standbys: StackWithStandbys, failing: int) -> None:
    standbys.fails = lambda statement: len(standbys.seen) == failing + 1

    with pytest.raises(DeployFailed):
        rotate(standbys, "replication_password")
    assert standbys.secret("replication_password") == "p7"
    assert set(standbys.passwords.values()) == {"p7"}


def test_standbys_have_their_password_if_no_sign_in_succeeds(standbys: StackWithStandbys) -> None:
    """Not with the old password either. Each file is written before the first sign-in."""
    standbys.fails = lambda statement: statement == "IDENTIFY_SYSTEM"

    with pytest.raises(DeployFailed):
        rotate(standbys, "replication_password")
    assert standbys.secret("replication_password") == "p7"
    assert set(standbys.passwords.values()) == {"p7"}


def test_stopped_standby_reads_its_password_at_the_start(standbys: StackWithStandbys) -> None:
    standbys.running = []
    rotate(standbys, "replication_password")

    assert standbys.passwords["postgres"] == standbys.secret("replication_password") != "p7"


@pytest.mark.parametrize(
    ("secret", "urls", "statement"),
    [
        ("owner_password", ["migration_database_url"], "ALTER ROLE headroom_owner PASSWORD ..."),
        (
            "monitor_password",
            ["monitor_database_url", "pgbouncer_admin_url", "monitor_read_url"],
            "ALTER ROLE headroom_monitor PASSWORD ...",
        ),
        ("superuser_password", [], "ALTER ROLE postgres PASSWORD ..."),
        ("console_password", ["pgbouncer_console_url"], "RELOAD"),
    ],
)
def test_other_password_is_changed_in_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str, urls: list[str], statement: str
) -> None:
    monkeypatch.setattr("ops.deploy.rotation.wait_until_healthy", lambda stack, service: None)
    stack = RotatingStack(tmp_path)
    rotate(stack, secret)

    password = stack.secret(secret)
    changed = {name for name in SECRETS if stack.secret(name) != SECRETS[name]}
    assert changed == {secret, *urls}
    assert all(stack.secret(url) == SECRETS[url].replace(SECRETS[secret], password) for url in urls)
    assert stack.seen[-1] == statement
    assert stack.releases_of_replicas() == [1, 1]
    assert (stack.folder / secret).stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("name", ["owner_password", "monitor_password", "app_password"])
def test_rotation_before_the_first_deploy_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stack = RotatingStack(tmp_path)
    monkeypatch.setattr(stack, "current", lambda: None)

    with pytest.raises(DeployFailed, match="no deploy has succeeded yet: make deploy"):
        rotate(stack, name)
    assert {name: stack.secret(name) for name in SECRETS} == SECRETS
    assert stack.seen == []


@pytest.mark.parametrize("name", ["", "backup_repository", "database_url"])
def test_secret_without_a_rotation_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DeployFailed, match="secret: must be one of superuser_password, owner_password,"):
        rotate(RotatingStack(tmp_path), name)


def test_rollback_after_a_rotation_goes_to_the_release_before(tmp_path: Path) -> None:
    stack = RotatingStack(tmp_path)
    timeline = Timeline("deploy", tmp_path / "log")
    deploy(stack, timeline, "headroom:two")
    rotate(stack, "app_password")
    assert [str(release) for release in stack.releases()] == ["release 1 (one)", "release 3 (two)"]

    rollback(stack, timeline)
    assert stack.releases_of_replicas() == [1, 1]


def users_elsewhere(password: str, *, other: str, monitor: str = "p3") -> str:
    """Return PgBouncer's file. The passwords are those of headroom_app and headroom_app_2."""
    passwords = {"app": password, "app_2": other, "monitor": monitor, "console": "p5"}
    return "\n".join(f'"headroom_{name}" "{value}"' for name, value in passwords.items())


def test_api_password_elsewhere_overlaps_in_pgbouncer_too(tmp_path: Path) -> None:
    """PgBouncer has the passwords in a file. The one of the old replicas stays in it until they are gone."""
    stack = StackElsewhere(tmp_path)
    rotate(stack, "app_password")

    new = stack.secret("app_password")
    url = f"database_url=postgresql+psycopg://headroom_app_2:{new}@pgbouncer:6432/headroom"
    assert stack.seen == [
        "the roles",
        "SET stats_users = 'headroom_app, headroom_app_2, headroom_monitor'",
        "ALTER ROLE headroom_app_2 PASSWORD ...",
        users_elsewhere("p2", other=new),
        "RELOAD",
        url,
        url,
        "ALTER ROLE headroom_app PASSWORD NULL",
        users_elsewhere(new, other=new),
        "RELOAD",
    ]


def test_failed_rotation_elsewhere_restores_pgbouncers_file(tmp_path: Path) -> None:
    stack = StackElsewhere(tmp_path)
    stack.model["x-deploy"]["ready_seconds"] = "0"
    stack.broken = {"one"}

    with pytest.raises(DeployFailed, match="was not ready after 0 s"):
        rotate(stack, "app_password")
    assert {name: stack.secret(name) for name in SECRETS} == SECRETS
    removed = "ALTER ROLE headroom_app_2 PASSWORD NULL"
    assert stack.seen[-3:] == [removed, users_elsewhere("p2", other="p2"), "RELOAD"]


def test_api_password_without_our_pgbouncer_needs_only_the_roles(tmp_path: Path) -> None:
    stack = StackElsewhere(tmp_path, pooled=False)
    rotate(stack, "app_password")

    roles = [each for each in stack.seen if not each.startswith("database_url=")]
    assert roles == ["the roles", "ALTER ROLE headroom_app_2 PASSWORD ...", "ALTER ROLE headroom_app PASSWORD NULL"]


@pytest.mark.parametrize("pooled", [True, False])
def test_monitor_password_elsewhere_reaches_pgbouncer_before_the_exporter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pooled: bool
) -> None:
    monkeypatch.setattr("ops.deploy.rotation.wait_until_healthy", lambda stack, service: None)
    stack = StackElsewhere(tmp_path, pooled=pooled)
    rotate(stack, "monitor_password")

    users = users_elsewhere("p2", other="p2", monitor=stack.secret("monitor_password"))
    assert stack.seen == ["ALTER ROLE headroom_monitor PASSWORD ...", *([users, "RELOAD"] if pooled else [])]
    assert stack.calls == ["replace exporter"]


@pytest.mark.parametrize(
    ("name", "pooled", "message"),
    [
        ("superuser_password", True, "a PostgreSQL server elsewhere has no role with it"),
        ("pgbouncer_password", True, "a PostgreSQL server elsewhere has no role with it"),
        ("console_password", False, "the Compose file has no service pgbouncer"),
        ("app_password", True, "admin_password is missing: write the password of the server's administrator"),
    ],
)
def test_rotation_that_a_server_elsewhere_lacks_is_refused(
    tmp_path: Path, name: str, pooled: bool, message: str
) -> None:
    stack = StackElsewhere(tmp_path, pooled=pooled)
    (stack.folder / "admin_password").unlink()

    with pytest.raises(DeployFailed, match=message):
        rotate(stack, name)
    assert {name: stack.secret(name) for name in SECRETS} == SECRETS
    assert stack.seen == []
