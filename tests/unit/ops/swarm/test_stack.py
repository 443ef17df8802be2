"""What becomes of a Compose model in Swarm."""

from pathlib import Path
from typing import Any

import pytest

from ops.swarm.errors import SwarmError
from ops.swarm.stack import MAX_OBJECT_BYTES, Stack, content_tag, render


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "ops").mkdir()
    (tmp_path / "ops/a.cfg").write_text("a")
    (tmp_path / "ops/b.sh").write_text("b")
    (tmp_path / "ops/b.sh").chmod(0o755)
    (tmp_path / "password").write_text("correct horse")
    return tmp_path


def rendered(project: Path, *, model: dict[str, Any] | None = None, **service: Any) -> Stack:
    """Return the stack of one service, which is named `web`."""
    services = {"web": {"image": "web:1", **service}}
    return render({"name": "headroom", "services": services} | (model or {}), project)


def web(stack: Stack) -> dict[str, Any]:
    return stack.services["web"]


def bind(source: Path, target: str, **options: Any) -> dict[str, Any]:
    return {"type": "bind", "source": str(source), "target": target, "read_only": True, **options}


def test_files_of_the_project_become_configs(project: Path) -> None:
    stack = rendered(project, volumes=[bind(project / "ops", "/etc/web"), bind(project / "ops/b.sh", "/usr/bin/b")])

    files = {entry["target"]: entry["mode"] for entry in web(stack)["configs"]}
    assert files == {"/etc/web/a.cfg": 0o444, "/etc/web/b.sh": 0o555, "/usr/bin/b": 0o555}
    assert "volumes" not in web(stack)
    contents = {each.name: each.content for each in stack.objects}
    assert [contents[entry["source"]] for entry in web(stack)["configs"]] == [b"a", b"b", b"b"]


def test_file_with_two_targets_becomes_two_configs(project: Path) -> None:
    """Docker sorts the configs of a service by name: with equal names, each deploy would replace the service."""
    stack = rendered(project, volumes=[bind(project / "ops/a.cfg", "/x"), bind(project / "ops/a.cfg", "/y")])

    assert len({entry["source"] for entry in web(stack)["configs"]}) == 2


def test_changed_file_gets_another_name(project: Path) -> None:
    volumes = [bind(project / "ops/a.cfg", "/x")]
    before = rendered(project, volumes=volumes)
    assert rendered(project, volumes=volumes) == before

    (project / "ops/a.cfg").write_text("changed")

    assert not rendered(project, volumes=volumes).references() & before.references()


def test_secret_gets_a_name_that_depends_on_its_content(project: Path) -> None:
    (project / "other").write_text("other")
    model = {"secrets": {"password": {"file": str(project / "password")}, "unused": {"file": str(project / "other")}}}
    mounted = [{"source": "password", "target": "/run/secrets/password"}]
    stack = rendered(project, model=model, secrets=mounted)

    [entry] = web(stack)["secrets"]
    assert entry["target"] == "/run/secrets/password"
    assert stack.document["secrets"] == {entry["source"]: {"external": True, "name": entry["source"]}}
    assert [(each.kind, each.name, each.content) for each in stack.objects] == [
        ("secret", entry["source"], b"correct horse")
    ], "no object for a secret that no service has"
    assert stack.mounted("web", "/run/secrets/password") == b"correct horse"
    assert "correct horse" not in str(stack)

    (project / "password").write_text("battery staple")
    [changed] = web(rendered(project, model=model, secrets=mounted))["secrets"]
    assert changed["source"] != entry["source"]


def test_object_of_the_swarm_is_used_as_it_is(project: Path) -> None:
    model = {"secrets": {"password": {"external": True, "name": "shared"}}}
    stack = rendered(project, model=model, secrets=[{"source": "password"}])

    assert web(stack)["secrets"] == [{"source": "shared"}]
    assert stack.document["secrets"] == {"shared": {"external": True, "name": "shared"}}
    assert stack.objects == ()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file": "/no/such/file"}, r"secret /no/such/file: No such file or directory; run make secrets"),
        ({"environment": "PASSWORD"}, "secret password: must have a file"),
    ],
)
def test_secret_without_a_file_is_refused(project: Path, entry: dict[str, str], message: str) -> None:
    with pytest.raises(SwarmError, match=message):
        rendered(project, model={"secrets": {"password": entry}})


def test_empty_file_becomes_a_line_break(project: Path) -> None:
    """Swarm has no empty objects; `make secrets` writes empty files for what is optional."""
    (project / "ops/a.cfg").write_text("")

    assert [each.content for each in rendered(project, volumes=[bind(project / "ops/a.cfg", "/x")]).objects] == [b"\n"]


def test_large_file_is_refused(project: Path) -> None:
    volumes = [bind(project / "ops/a.cfg", "/x")]
    (project / "ops/a.cfg").write_bytes(b"x" * (MAX_OBJECT_BYTES + 1))
    with pytest.raises(SwarmError, match=r"config a\.cfg: 500001 bytes, but Swarm allows 500000"):
        rendered(project, volumes=volumes)


def test_file_that_the_service_may_write_is_refused(project: Path) -> None:
    with pytest.raises(SwarmError, match="must be mounted read-only"):
        rendered(project, volumes=[bind(project / "ops/a.cfg", "/x", read_only=False)])


def test_file_outside_of_the_project_stays_a_mount(project: Path) -> None:
    volume = {"type": "bind", "source": "/etc/localtime", "target": "/etc/localtime", "read_only": True}

    assert web(rendered(project, volumes=[volume | {"bind": {"create_host_path": True}}]))["volumes"] == [volume]


def test_names_of_objects_are_short_enough(project: Path) -> None:
    (project / "ops" / ("long" * 30)).write_text("x")
    stack = rendered(project, volumes=[bind(project / "ops", "/etc/web")])

    assert max(len(name) for name in stack.references()) == 64


def test_tmpfs_becomes_a_mount(project: Path) -> None:
    """Swarm ignores the key, and knows no owner."""
    stack = rendered(project, tmpfs=["/tmp", "/run/x:uid=99,mode=0700"])

    assert web(stack)["volumes"] == [{"type": "tmpfs", "target": "/tmp"}, {"type": "tmpfs", "target": "/run/x"}]
    assert "tmpfs" not in web(stack)


def test_size_of_a_tmpfs_is_a_number(project: Path) -> None:
    volume = {"type": "tmpfs", "target": "/dev/shm", "tmpfs": {"size": "268435456"}}

    assert web(rendered(project, volumes=[volume]))["volumes"] == [volume | {"tmpfs": {"size": 268435456}}]


def port(**options: Any) -> dict[str, Any]:
    return {"target": 8443, "published": "443", "protocol": "tcp", **options}


def test_ports_are_published_on_the_machine(project: Path) -> None:
    stack = rendered(project, ports=[port(mode="host")])

    assert web(stack)["ports"] == [{"target": 8443, "published": 443, "protocol": "tcp", "mode": "host"}]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_port_for_the_machine_itself_is_not_published(project: Path, host: str) -> None:
    """Swarm would publish it on every address."""
    assert web(rendered(project, ports=[port(mode="ingress", host_ip=host)]))["ports"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "ingress"}, "port 443: must have mode: host; Swarm's routing mesh hides the client's address"),
        ({"mode": "host", "host_ip": "10.0.0.5"}, r"Swarm publishes on every address of a machine, not on 10\.0\.0\.5"),
    ],
)
def test_port_that_swarm_publishes_otherwise_is_refused(project: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(SwarmError, match=message):
        rendered(project, ports=[port(**options)])


def test_keys_that_swarm_ignores_are_left_out(project: Path) -> None:
    ignored: dict[str, Any] = {"build": {"context": "."}, "depends_on": {"api": {}}, "security_opt": ["x"]}
    stack = rendered(project, command=None, restart="always", **ignored)

    assert web(stack) == {"image": "web:1", "stop_grace_period": "10s", "deploy": {"endpoint_mode": "dnsrr"}}
    assert stack.built == {"web"}


def test_keys_that_would_be_lost_are_refused(project: Path) -> None:
    with pytest.raises(SwarmError, match="service web: Swarm does not support network_mode, shm_size"):
        rendered(project, shm_size="64m", network_mode="host")


def test_networks_are_overlays_with_options_that_are_set(project: Path) -> None:
    networks = {
        "front": {"name": "headroom_front", "ipam": {}, "driver_opts": {"encrypted": ""}},
        "back": {"name": "headroom_back", "internal": True, "driver_opts": {"encrypted": "true"}},
    }

    assert rendered(project, model={"networks": networks}).document["networks"] == {
        "front": {"name": "headroom_front", "driver": "overlay"},
        "back": {
            "name": "headroom_back",
            "internal": True,
            "driver": "overlay",
            "driver_opts": {"encrypted": "true"},
        },
    }


def test_zero_replicas_stay_zero(project: Path) -> None:
    deploy = {"replicas": 0, "placement": {}, "resources": {"limits": {"cpus": 1}}}

    assert web(rendered(project, deploy=deploy))["deploy"] == {
        "endpoint_mode": "dnsrr",
        "replicas": 0,
        "resources": {"limits": {"cpus": "1"}},
    }


def test_tag_of_a_folder_depends_on_its_files_and_arguments(project: Path) -> None:
    build = {"context": str(project / "ops"), "args": {"POSTGRES_IMAGE": "17"}}
    tags = [content_tag(build)]
    labelled = build | {"args": {"POSTGRES_IMAGE": "17", "CREATED": "2026-11-27"}}
    assert content_tag(labelled) == tags[0]

    tags.append(content_tag(build | {"args": {"POSTGRES_IMAGE": "18"}}))
    (project / "ops/b.sh").chmod(0o644)
    tags.append(content_tag(build))
    (project / "ops/a.cfg").write_text("changed")
    tags.append(content_tag(build))

    assert len(set(tags)) == 4
