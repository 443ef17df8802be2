"""What a deploy reads from HAProxy and from the labels of images, and what it writes into Compose files."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from app.paths import PROJECT_ROOT
from ops.deploy import releases
from ops.deploy.operations import version_of
from ops.deploy.proxy import serving
from ops.deploy.releases import Release
from ops.deploy.rotation import Rotation
from ops.deploy.stack import default_project, is_set
from ops.deploy.timeline import Timeline
from tests.support.fake_stack import FakeStack, model

HEADER = "# pxname,svname,status,check_status,addr\n"


def test_replica_serves_if_each_backend_has_checked_it() -> None:
    rows = [
        "reads,api1,UP,L7OK,10.0.0.1:8000",
        "writes,api1,UP 1/2,* L7OK,10.0.0.1:8000",
        "reads,api2,UP,L7OK,10.0.0.2:8000",
        "writes,api2,UP,INI,10.0.0.2:8000",  # no check yet
        "reads,api3,DOWN,L7STS,10.0.0.3:8000",
        "writes,api3,UP,L7OK,10.0.0.3:8000",
        "reads,api4,MAINT,,",
        "not_ready,api5,UP,L4OK,10.0.0.5:8000",
        "reads,BACKEND,UP,,",
    ]
    assert serving(HEADER + "\n".join(rows)) == {"10.0.0.1"}


def test_release_survives_the_labels_of_its_image() -> None:
    release = Release("p", 7, "1.2.3-abc", model(DB_POOL_SIZE='a "$quoted" value'), "headroom:1.2.3-abc", 6)

    assert releases.from_labels(release.labels()) == release
    assert (release.image, release.replicas, release.surge) == ("p-release:7-1.2.3-abc", 2, 1)


def test_release_keeps_only_its_services() -> None:
    whole = model() | {"networks": {"front": {}}, "secrets": {"a": {}}}
    part = releases.reduced(whole)
    assert sorted(part["services"]) == ["api", "migrate"]

    now = {"services": {"api": {"image": "new"}, "proxy": {"image": "new"}}, "secrets": {"b": {}}}
    merged = releases.merged(now, part)
    assert merged["services"]["api"] == whole["services"]["api"]
    assert merged["services"]["proxy"] == {"image": "new"}
    assert (sorted(merged["secrets"]), merged["networks"]) == (["a", "b"], {"front": {}})


def test_releases_beyond_the_newest_are_superfluous() -> None:
    kept = [Release("p", number, "x", {}, before=number - 1) for number in range(1, 6)]

    def superfluous(current: Release) -> list[int]:
        return [release.number for release in releases.superfluous(kept, current, keep=2)]

    assert superfluous(kept[4]) == [1, 2, 3]
    assert superfluous(kept[1]) == [3], "after a rollback, the one that serves and the one before it stay"
    assert superfluous(replace(kept[4], before=2)) == [1, 3]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1.2.3-abc", "1.2.3-abc"), ("sha256:0123", "sha256-0123"), (".-x", "x"), ("", "unknown"), ("v" * 99, "v" * 60)],
)
def test_version_is_valid_in_a_tag(text: str, expected: str) -> None:
    assert releases.valid_version(text) == expected


def test_version_without_git_has_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    assert version_of(tmp_path)[:8] == "1.2.3-20"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("COMPOSE_FILE=a.yml:b.yml\n", True),
        ("X=1\nexport COMPOSE_FILE=a.yml\n", True),
        ("# COMPOSE_FILE=a.yml\n", False),
    ],
)
def test_compose_files_of_the_environment_file_are_used(tmp_path: Path, text: str, expected: bool) -> None:
    (tmp_path / ".env").write_text(text)
    assert is_set(tmp_path, "COMPOSE_FILE") is expected


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("/srv/headroom", "headroom"), ("/srv/My Service.v2", "myservicev2"), ("/srv/_a-b_1", "a-b_1")],
)
def test_default_project_is_the_folder_as_compose_writes_it(folder: str, expected: str) -> None:
    assert default_project(folder) == expected


OF_BEFORE = "srv\tpgbouncer\t/data/srv\t/data/srv/compose.prod.yml"


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        ([OF_BEFORE, "srv\tapi\t/data/srv\t/data/srv/compose.prod.yml"], "srv"),
        ([OF_BEFORE, "p\tapi\t/data/srv\t/data/srv/compose.prod.yml"], None),
        (["srv\tpgbouncer\t/data/srv\t/data/srv/docker-compose.yml"], None),
        (["srv\tweb\t/data/srv\t/data/srv/compose.prod.yml"], None),
        (["chosen\tpgbouncer\t/data/srv\t/data/srv/compose.prod.yml"], None),
        ([], None),
    ],
    ids=["before", "both", "development", "another product", "named", "new host"],
)
def test_project_of_before_has_the_name_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, containers: list[str], expected: str | None
) -> None:
    monkeypatch.delenv("COMPOSE_PROJECT_NAME", raising=False)
    stack = FakeStack(tmp_path)
    stack.listed = "\n".join(containers)
    assert stack.project_of_before() == expected

    (tmp_path / ".env").write_text("COMPOSE_PROJECT_NAME=p\n")
    assert stack.project_of_before() is None


def test_document_has_the_settings_and_secrets_of_the_program(tmp_path: Path) -> None:
    document = (PROJECT_ROOT / "docs/deploying.md").read_text()
    compose = (PROJECT_ROOT / "compose.prod.yml").read_text()
    stack = FakeStack()
    stack.model["secrets"] = {}

    settings = re.findall(r"^\| `(DEPLOY_\w+)` \| `(.+?)` \|", document, re.MULTILINE)
    secrets = re.findall(r"^\| `([a-z_]+)` \|", document, re.MULTILINE)

    assert [setting for setting in settings if setting[0] != "DEPLOY_LOG"] == re.findall(
        r"\$\{(DEPLOY_\w+):-(.*?)\}", compose
    )
    assert sorted(secrets) == sorted(Rotation(stack, Timeline("rotate", tmp_path)).kinds)
