"""The chart: every installation of the matrix is valid, safe and within its budget; wrong values are refused."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.paths import PROJECT_ROOT
from app.settings import Settings, is_secret
from ops.docs.write_tables import chart_table
from tests.support.charts import (
    CHART,
    GOLDEN,
    MATRIX,
    Manifest,
    RenderFailed,
    golden,
    golden_file,
    helm,
    manifests,
    notes,
    of_kind,
    render,
    rendered,
)
from tests.support.custom_resources import CUSTOM_RESOURCES
from tests.support.fake_kubernetes import cluster_with_secret

KUBERNETES = "1.37"
ASSIGNMENT = re.compile(r"^(\w+) *= *([^\s;#]+)", re.MULTILINE)


def validate(manifest: Manifest) -> None:
    """Raise an error if the manifest has an unknown field, or a field of another type."""
    model = CUSTOM_RESOURCES.get((manifest["apiVersion"], manifest["kind"]))
    if model:
        model.model_validate(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def pods(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the specification of each pod of our image."""
    for manifest in manifests(text):
        if manifest["kind"] in {"Deployment", "Job"}:
            yield manifest["metadata"]["name"], manifest["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("name", MATRIX)
def test_each_manifest_is_valid(name: str) -> None:
    for manifest in manifests(rendered(name)):
        validate(manifest)
        if manifest["kind"] == "Pooler":
            pod = {"spec": manifest["spec"]["template"]["spec"], "metadata": {"name": "a"}}
            kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod"} | pod, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("Deployment", "spec.strateggy"),
        ("Deployment", "spec.template.spec.enableServiceLink"),
        ("Job", "spec.backOffLimit"),
        ("ResourceQuota", "spec.hardd"),
        ("NetworkPolicy", "spec.egres"),
        ("Cluster", "spec.postgresql.parameter"),
        ("Pooler", "spec.pgbouncer.parameters.admin_users"),
        ("ObjectStore", "spec.configuration.endpointUrl"),
        ("ServiceMonitor", "spec.joblabel"),
        ("HTTPRoute", "spec.hosts"),
    ],
)
def test_unknown_field_is_refused(kind: str, path: str) -> None:
    manifest = next(each for each in manifests(rendered("everything")) if each["kind"] == kind)
    *parents, last = path.split(".")
    part = manifest
    for parent in parents:
        part = part[parent]
    part[last] = "x"

    with pytest.raises(Exception, match=last):
        validate(manifest)


@pytest.mark.parametrize("name", GOLDEN)
def test_manifests_equal_their_golden_file(name: str) -> None:
    expected = golden_file(name).read_text()

    assert golden(rendered(name)) == expected, "if this is intended: .venv/bin/python -m tests.support.charts"


@pytest.mark.parametrize("name", ["default", "everything"])
def test_chart_passes_lint(name: str) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART), values=MATRIX[name])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"api": {"worker": 2}}, "worker"),
    ({"api": {"workers": 0}}, "/api/workers"),
    ({"api": {"workers": "two"}}, "/api/workers"),
    ({"api": {"terminating": 0}}, "/api/terminating"),
    ({"image": {"tag": "latest"}}, "/image/tag"),
    ({"autoscaling": {"kind": "vpa"}}, "/autoscaling/kind"),
    ({"autoscaling": {"maxReplicas": 1}}, "autoscaling.maxReplicas: must be at least api.replicas (2), got 1"),
    ({"api": {"settings": {"DB_POOL_SIZE": "9"}}}, "api.settings.DB_POOL_SIZE: the chart sets this variable itself"),
    ({"api": {"settings": {"LOG_EVERY": 100}}}, "/api/settings/LOG_EVERY"),
    ({"api": {"settings": {"DATABASE_READ_URL": "x"}}}, "api.settings.DATABASE_READ_URL: the chart sets this variable"),
    ({"readReplicas": {"poolSize": 0}}, "/readReplicas/poolSize"),
    (
        {
            "readReplicas": {"enabled": True},
            "database": {"cluster": {"instances": 1, "synchronousStandbys": 0}},
        },
        "readReplicas.enabled: needs a standby: database.cluster.instances must be at least 2, got 1",
    ),
    ({"migration": {"settings": {"DATABASE_URL": "x"}}}, "migration.settings.DATABASE_URL"),
    ({"database": {"kind": "mysql"}}, "/database/kind"),
    (
        {"database": {"cluster": {"parameters": {"max_connections": "500"}}}},
        "database.cluster.parameters.max_connections",
    ),
    ({"database": {"cluster": {"instances": 1}}}, "database.cluster.synchronousStandbys: must be less than"),
    ({"database": {"backup": {"enabled": True}}}, "database.backup.destinationPath: is missing"),
    ({"database": {"external": {"cidrs": ["everywhere"]}}}, "/database/external/cidrs/0"),
    ({"gateway": {"enabled": True}}, "/gateway/parents"),
    ({"pooler": {"maxDbConnections": 30}}, "maxDbConnections"),
    ({"api": {"resources": {"limits": {"memory": "1 GB"}}}}, "/api/resources/limits/memory"),
    ({"monitoring": {"interval": "5 seconds"}}, "/monitoring/interval"),
]


@pytest.mark.parametrize(("values", "named"), WRONG, ids=[named for _, named in WRONG])
def test_wrong_value_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(RenderFailed) as caught:
        render(values)

    assert named in str(caught.value)


@pytest.mark.parametrize("name", MATRIX)
def test_pods_meet_the_restricted_pod_security_standard(name: str) -> None:
    """And more: a read-only file system, limits of memory, no token of the API server."""
    for _, pod in pods(rendered(name)):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"].get("runAsUser", 1) > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False, "a Service named api would set API_PORT"
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert all(volume.keys() & {"emptyDir", "projected"} for volume in pod["volumes"])
        assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "emptyDir" in volume)
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_user_of_the_pods_is_the_cluster_s_if_it_is_null() -> None:
    """OpenShift assigns one to each namespace, and refuses others."""
    contexts = {str(pod["securityContext"]) for _, pod in pods(rendered("least"))}
    [fixed] = {str(pod["securityContext"]) for _, pod in pods(rendered("default"))}

    assert contexts == {"{'runAsNonRoot': True, 'seccompProfile': {'type': 'RuntimeDefault'}}"}
    assert "'runAsUser': 10001, 'runAsGroup': 10001, 'fsGroup': 10001" in fixed


def test_path_of_ingress_and_gateway_is_the_root_path() -> None:
    """The API expects its prefix in each path: neither of them removes it."""
    paths = {}
    for name, values in (("prefix", {"ROOT_PATH": "/api"}), ("none", {})):
        text = render(MATRIX["everything"] | {"api": {"settings": values}})
        [ingress] = of_kind(text, "Ingress")["spec"]["rules"][0]["http"]["paths"]
        [[gateway]] = [rule["matches"] for rule in of_kind(text, "HTTPRoute")["spec"]["rules"]]
        paths[name] = (ingress["path"], gateway["path"]["value"])

    assert paths == {"prefix": ("/api", "/api"), "none": ("/", "/")}


@pytest.mark.parametrize("name", MATRIX)
def test_no_secret_is_in_an_environment(name: str) -> None:
    secrets = {field.upper() for field, info in Settings.model_fields.items() if is_secret(info)}
    for _, pod in pods(rendered(name)):
        for container in containers(pod):
            assert not secrets & environment(container).keys()


@pytest.mark.parametrize("name", MATRIX)
def test_each_variable_is_a_setting_with_a_valid_value(name: str) -> None:
    for _, pod in pods(rendered(name)):
        for container in containers(pod):
            values = environment(container)
            assert {each.removesuffix("_FILE").lower() for each in values} <= Settings.model_fields.keys()
            Settings.model_validate({each.lower(): values[each] for each in values if not each.endswith("_FILE")})


SECRET = {"database_url": "a", "secret_key": "b", "migration_database_url": "c", "monitor_database_url": "d"}


def checksums(secret: dict[str, str]) -> dict[str, str]:
    """Return the annotation of each Deployment's pods, on a cluster that has this Secret."""
    with cluster_with_secret(manifests(rendered("everything")), "headroom-secrets", secret) as address:
        text = render(
            MATRIX["everything"], "--dry-run=server", "--disable-openapi-validation", "--kube-apiserver", address
        )
    return {
        manifest["metadata"]["name"]: manifest["spec"]["template"]["metadata"]["annotations"]["checksum/secrets"]
        for manifest in manifests(text)
        if manifest["kind"] == "Deployment"
    }


def test_script_writes_the_secrets_that_the_chart_names(tmp_path: Path) -> None:
    """CloudNativePG applies another password of a role at once, because its Secret has a label."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    if shutil.which("kubectl", path=path) is None:
        pytest.skip("kubectl was not found")
    subprocess.run(
        [PROJECT_ROOT / "ops/make-secrets.sh", tmp_path, "", "db:5432", "pooler:5432", "ro:5432"], check=True
    )
    printed = subprocess.run(
        [PROJECT_ROOT / "ops/kubernetes/secrets", tmp_path, "headroom"],
        env=os.environ | {"PATH": path, "KUBECONFIG": os.devnull},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    secrets = {each["metadata"]["name"]: each for each in manifests(printed)}
    roles = {f"headroom-{role}" for role in ("app", "monitor", "owner")}
    assert secrets.keys() == {"headroom-secrets", *roles}
    assert {secrets[role]["metadata"]["labels"]["cnpg.io/reload"] for role in roles} == {"true"}
    assert {secrets[role]["type"] for role in roles} == {"kubernetes.io/basic-auth"}
    assert all(name in rendered("default") for name in secrets)
    keys = {
        item["key"]
        for _, pod in pods(rendered("reads"))
        for volume in pod["volumes"]
        for source in volume.get("projected", {}).get("sources", ())
        if source["secret"]["name"] == "headroom-secrets"
        for item in source["secret"]["items"]
    }
    assert secrets["headroom-secrets"]["data"].keys() == keys


def test_upgrade_replaces_the_pods_that_read_a_changed_secret() -> None:
    before = checksums(SECRET)
    of_api = checksums(SECRET | {"secret_key": "new", "migration_database_url": "new"})
    of_exporter = checksums(SECRET | {"monitor_database_url": "new"})

    assert {name for name in before if before[name] != of_api[name]} == {"headroom-api"}
    assert {name for name in before if before[name] != of_exporter[name]} == {"headroom-exporter"}


@pytest.mark.parametrize("name", MATRIX)
def test_each_secret_file_is_mounted(name: str) -> None:
    for _, pod in pods(rendered(name)):
        [mounted] = [
            {item["path"] for source in volume["projected"]["sources"] for item in source["secret"]["items"]}
            for volume in pod["volumes"]
            if "projected" in volume
        ]
        for container in pod["containers"]:
            files = [value for each, value in environment(container).items() if each.endswith("_FILE")]
            assert {file.removeprefix("/run/secrets/") for file in files} <= mounted


def test_selectors_find_their_own_pods_only() -> None:
    """The Service of the API, say, must not send requests to an exporter or a migration job."""
    text = rendered("everything")
    labels = {
        manifest["metadata"]["name"]: manifest["spec"]["template"]["metadata"]["labels"]
        for manifest in manifests(text)
        if manifest["kind"] in {"Deployment", "Job"}
    }
    found: dict[str, set[str]] = {}
    for manifest in manifests(text):
        selector = manifest["spec"].get("selector", {}) if "spec" in manifest else {}
        wanted = selector.get("matchLabels", selector)
        if manifest["kind"] in {"Service", "PodDisruptionBudget", "Deployment"} and "cnpg.io/poolerName" not in wanted:
            key = f"{manifest['kind']} {manifest['metadata']['name']}"
            found[key] = {name for name, own in labels.items() if wanted.items() <= own.items()}

    assert found == {
        "Deployment headroom-api": {"headroom-api"},
        "Deployment headroom-exporter": {"headroom-exporter"},
        "PodDisruptionBudget headroom-api": {"headroom-api"},
        "Service headroom-api": {"headroom-api"},
        "Service headroom-metrics": {"headroom-api", "headroom-exporter"},
    }


def reachable(text: str) -> dict[str, set[str]]:
    """Return which pods the egress rules of each NetworkPolicy name."""
    reached = {}
    for manifest in manifests(text):
        if manifest["kind"] == "NetworkPolicy" and "Egress" in manifest["spec"]["policyTypes"]:
            peers = [peer for rule in manifest["spec"]["egress"] for peer in rule.get("to", ())]
            reached[manifest["metadata"]["name"]] = {server(peer["podSelector"]["matchLabels"]) for peer in peers}
    return reached


def server(labels: dict[str, str]) -> str:
    """Return which server the labels of its pods mean."""
    if "cnpg.io/poolerName" in labels:
        return "pooler"
    return "standby" if labels.get("cnpg.io/instanceRole") == "replica" else "db"


def admitted(text: str, policy: str) -> list[list[str]]:
    """Return the components that each rule of a NetworkPolicy admits to port 5432."""
    return [
        selector.get("matchLabels", {}).get("app.kubernetes.io/component", "").split()
        or selector["matchExpressions"][0]["values"]
        for rule in of_kind(text, "NetworkPolicy", policy)["spec"]["ingress"]
        if rule["ports"] == [{"port": 5432}]
        for selector in (peer["podSelector"] for peer in rule["from"])
        if "app.kubernetes.io/name" in selector["matchLabels"]
    ]


@pytest.mark.parametrize("name", ["default", "reads"])
def test_each_program_may_reach_what_its_urls_name(name: str) -> None:
    """And the API, behind a pooler, no primary: it cannot open connections that PgBouncer does not count."""
    mounted = {}
    for workload, pod in pods(rendered(name)):
        keys = {key for container in pod["containers"] for key in environment(container)}
        mounted[workload] = {
            {"DATABASE_URL_FILE": "pooler", "DATABASE_READ_URL_FILE": "standby"}.get(key, "db")
            for key in keys
            if key.endswith(("DATABASE_URL_FILE", "DATABASE_READ_URL_FILE"))
        }

    reached = reachable(rendered(name))
    assert (
        reached["headroom-api"] == mounted["headroom-api"] == {"pooler"} | ({"standby"} if name == "reads" else set())
    )
    # It reads the URL of the standby for the budget, and does not connect to it.
    assert reached["headroom-exporter"] == mounted["headroom-exporter"] - {"standby"} == {"db"}
    assert reached["headroom-migrate"] == {"pooler", "db"}
    assert admitted(rendered(name), "-pooler") == [["api", "migrate"]]
    assert admitted(rendered(name), "-db") == [["exporter", "migrate"]]


def test_standbys_admit_the_api_and_the_primary_does_not() -> None:
    text = rendered("reads")

    assert admitted(text, "-reads") == [["api"]]
    assert server(of_kind(text, "NetworkPolicy", "-reads")["spec"]["podSelector"]["matchLabels"]) == "standby"
    assert "headroom-reads" not in rendered("default")


@pytest.mark.parametrize("name", MATRIX)
def test_pod_is_killed_only_after_its_drain(name: str) -> None:
    pod = of_kind(rendered(name), "Deployment", "-api")["spec"]["template"]["spec"]
    [api] = pod["containers"]
    values = environment(api)
    before = api["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert (
        before + int(values["DRAIN_SECONDS"]) + int(values["GRACEFUL_TIMEOUT"]) + 1
        < pod["terminationGracePeriodSeconds"]
    )


def test_exporter_of_a_pod_is_a_sidecar_without_readiness() -> None:
    """A broken exporter must not take its API out of service."""
    [exporter] = of_kind(rendered("default"), "Deployment", "-api")["spec"]["template"]["spec"]["initContainers"]

    assert exporter["restartPolicy"] == "Always"
    assert "readinessProbe" not in exporter
    assert environment(exporter)["EXPORTER_SCOPE"] == "node"
    [server] = of_kind(rendered("default"), "Deployment", "-exporter")["spec"]["template"]["spec"]["containers"]
    assert environment(server)["EXPORTER_SCOPE"] == "server"


def test_ports_of_sidecars_are_numbers_in_services_and_policies() -> None:
    """Kubernetes before 1.32 and older network plugins look for named ports in the containers of a pod only."""
    text = rendered("default")
    named = {port["name"] for _, pod in pods(text) for each in pod.get("initContainers", ()) for port in each["ports"]}
    services = [
        port["targetPort"] for each in manifests(text) if each["kind"] == "Service" for port in each["spec"]["ports"]
    ]
    policies = [
        port["port"]
        for each in manifests(text)
        if each["kind"] == "NetworkPolicy"
        for rule in each["spec"]["ingress"]
        for port in rule["ports"]
    ]

    assert named == {"metrics"}
    assert 9464 in services
    assert 9464 in policies
    assert named.isdisjoint(map(str, [*services, *policies]))


def test_autoscaled_deployment_sets_no_replicas() -> None:
    """Otherwise each upgrade would undo what the autoscaler did."""
    for name in ("default", "keda"):
        assert "replicas" not in of_kind(rendered(name), "Deployment", "-api")["spec"]
    assert of_kind(rendered("fixed"), "Deployment", "-api")["spec"]["replicas"] == 4


@pytest.mark.parametrize("name", MATRIX)
def test_some_pod_can_be_replaced_in_a_rolling_update(name: str) -> None:
    strategy = of_kind(rendered(name), "Deployment", "-api")["spec"]["strategy"]["rollingUpdate"]

    assert sorted(strategy.values()) == [0, 1]


def test_first_job_with_a_cluster_is_no_hook() -> None:
    """Before the first install no Cluster exists, and the API becomes ready only after the job."""
    first = of_kind(rendered("default"), "Job")["metadata"]
    upgrade = of_kind(render({}, "--is-upgrade"), "Job")["metadata"]
    external = of_kind(rendered("external"), "Job")["metadata"]

    assert "annotations" not in first
    assert upgrade["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade,pre-rollback"
    assert external["annotations"] == upgrade["annotations"]


@pytest.mark.parametrize(
    "values",
    [
        {"image": {"tag": "2"}},
        {"api": {"pool": {"size": 4}}},
        {"migration": {"retries": 2}},
        {"migration": {"settings": {"LOG_LEVEL": "debug"}}},
    ],
)
def test_job_with_another_specification_has_another_name(values: dict[str, Any]) -> None:
    """A Job cannot be changed: Argo CD and `kubectl apply` would fail."""
    jobs = [of_kind(text, "Job") for text in (rendered("default"), render(values))]

    assert jobs[0]["spec"] != jobs[1]["spec"]
    assert jobs[0]["metadata"]["name"] != jobs[1]["metadata"]["name"]


@pytest.mark.parametrize(
    "values", [{"ingress": {"enabled": True}}, {"gateway": {"enabled": True, "parents": [{"name": "public"}]}}]
)
def test_notes_behind_a_proxy_ask_for_its_address(values: dict[str, Any]) -> None:
    trusting = values | {"api": {"settings": {"FORWARDED_ALLOW_IPS": "10.0.0.0/8"}}}

    assert "FORWARDED_ALLOW_IPS" in notes(values)
    assert "FORWARDED_ALLOW_IPS" not in notes(trusting)


def test_job_with_the_same_specification_has_the_same_name() -> None:
    """Otherwise each sync of Argo CD would migrate."""
    jobs = [of_kind(text, "Job") for text in (rendered("default"), render({"service": {"port": 8080}}))]

    assert jobs[0] == jobs[1]


def test_role_of_each_secret_url_is_managed() -> None:
    cluster = of_kind(rendered("default"), "Cluster")["spec"]
    roles = {role["name"] for role in cluster["managed"]["roles"]} | {cluster["bootstrap"]["initdb"]["owner"]}
    urls = (PROJECT_ROOT / "ops/make-secrets.sh").read_text()

    assert roles == {"headroom_app", "headroom_monitor", "headroom_owner"}
    assert all(f"://{role} " in urls or f'://{role}"' in urls for role in roles)


def test_prometheus_rules_are_those_of_the_compose_files() -> None:
    groups = of_kind(rendered("external-direct"), "PrometheusRule")["spec"]["groups"]
    expected = [
        (group["name"], group["rules"])
        for file in ("recording", "alerts")
        for group in yaml.safe_load((PROJECT_ROOT / f"ops/prometheus/rules/{file}.yml").read_text())["groups"]
        if group["name"] != "headroom-backups"
    ]

    assert [(group["name"], group["rules"]) for group in groups] == expected


def test_rules_of_the_console_are_left_out_behind_a_pooler() -> None:
    """Without the clients of PgBouncer, ViewsDisagree would fire for ever."""
    groups = of_kind(rendered("default"), "PrometheusRule")["spec"]["groups"]
    names = {rule.get("alert", rule.get("record")) for group in groups for rule in group["rules"]}

    assert not {"ViewsDisagree", "stack:db_connections_beyond_pools:difference"} & names
    assert {"HeadroomLow", "OverBudget", "PoolTimeouts"} <= names


def test_job_label_is_the_job_of_the_alerts() -> None:
    """ExporterDown watches up{job="headroom"}."""
    monitor = of_kind(rendered("default"), "ServiceMonitor")["spec"]
    service = of_kind(rendered("default"), "Service", "-metrics")["metadata"]

    assert service["labels"][monitor["jobLabel"]] == "headroom"
    assert monitor["selector"]["matchLabels"].items() <= service["labels"].items()


def test_dashboard_and_roles_are_those_of_the_compose_files() -> None:
    dashboard = of_kind(rendered("default"), "ConfigMap", "-dashboard")["data"]["headroom.json"]
    roles = of_kind(rendered("default"), "ConfigMap", "-roles")["data"]["roles.sql"]

    assert dashboard.strip() == (PROJECT_ROOT / "ops/grafana/dashboards/headroom.json").read_text().strip()
    assert roles.strip() == (PROJECT_ROOT / "ops/postgres/roles.sql").read_text().strip()


def test_server_parameters_are_those_of_the_compose_files() -> None:
    """Numbers of the budget and of memory are the chart's own."""
    ours = dict(ASSIGNMENT.findall((PROJECT_ROOT / "ops/postgres/postgresql.conf").read_text()))
    parameters = of_kind(rendered("default"), "Cluster")["spec"]["postgresql"]["parameters"]
    memory = {"shared_buffers": "512MB", "effective_cache_size": "1536MB"}

    assert {name: value for name, value in parameters.items() if ours[name] != value} == memory


@pytest.mark.parametrize(
    ("memory", "parameters", "expected"),
    [
        ("512Mi", {}, ("128MB", "384MB")),
        ("8Gi", {}, ("2048MB", "6144MB")),
        ("8Gi", {"shared_buffers": "3GB"}, ("3GB", "6144MB")),
    ],
)
def test_buffers_follow_the_memory_of_an_instance(
    memory: str, parameters: dict[str, str], expected: tuple[str, str]
) -> None:
    cluster = {"resources": {"limits": {"memory": memory}}, "parameters": parameters}
    set_ = of_kind(render({"database": {"cluster": cluster}}), "Cluster")["spec"]["postgresql"]["parameters"]

    assert (set_["shared_buffers"], set_["effective_cache_size"]) == expected


def test_pooler_parameters_are_those_of_the_compose_files() -> None:
    ours = dict(ASSIGNMENT.findall((PROJECT_ROOT / "ops/pgbouncer/pgbouncer.ini").read_text()))
    pgbouncer = of_kind(rendered("default"), "Pooler")["spec"]["pgbouncer"]
    own = {"default_pool_size", "reserve_pool_size"}

    assert pgbouncer["poolMode"] == ours["pool_mode"]
    assert {name: value for name, value in pgbouncer["parameters"].items() if ours[name] != value}.keys() == own


def test_readme_has_the_table_of_values() -> None:
    assert chart_table() in (CHART / "README.md").read_text(), "run make docs"


def test_readme_describes_every_value() -> None:
    def leaves(part: dict[str, Any], path: str = "") -> Iterator[str]:
        for name, value in part.items():
            if isinstance(value, dict) and value and name not in {"resources", "dashboardLabels"}:
                yield from leaves(value, f"{path}{name}.")
            else:
                yield f"{path}{name}"

    values = yaml.safe_load((CHART / "values.yaml").read_text())
    described = re.findall(r"^\| `(\S+)` \|", chart_table(), re.MULTILINE)

    assert described == list(leaves(values))


def test_schema_knows_every_value_and_no_other() -> None:
    def compare(schema: dict[str, Any], values: dict[str, Any], path: str) -> None:
        known = schema["properties"].keys() - ({"global"} if not path else set())
        assert known == values.keys(), path
        assert schema["additionalProperties"] is False, path
        for name, value in values.items():
            if "properties" in schema["properties"][name]:
                compare(schema["properties"][name], value, f"{path}/{name}")

    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    compare(schema, yaml.safe_load((CHART / "values.yaml").read_text()), "")
