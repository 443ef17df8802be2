"""The budget of rendered Kubernetes manifests: the most pods that their objects allow, not only what settings say.

The manifests are those of the chart in ops/kubernetes/, also after other programs have changed them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from app import lanes
from app.budget.model import ApiPools, Budget, Pooler, Server
from app.budget.sources import READ_URLS, BudgetReport
from app.errors import ConfigurationError
from app.settings import Settings

Manifest = Mapping[str, Any]

# The container whose variables are the terms of the budget.
_CONTAINER = "api"
# KEDA's default for maxReplicaCount, and Kubernetes' for maxSurge.
_KEDA_MAX_REPLICAS = 100
_MAX_SURGE = "25%"


def from_manifests(text: str) -> BudgetReport:
    """Return the budget of the Deployment with a container named `api`, and of the objects that belong to it.

    Its pods are those of the autoscaler's maximum, of the surge and of terminating ones, at most those of the
    ResourceQuota. Raise ConfigurationError if the text has no such Deployment or more than one, or an object of it
    lacks a required field.
    """
    try:
        return _report(list(_manifests(text)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigurationError(
            f"the manifests are not valid ({error!r}): run kubectl apply --dry-run=server on them"
        ) from error


def _report(manifests: Sequence[Manifest]) -> BudgetReport:
    deployment, environment = _api(manifests)
    reads = any(map(environment.get, READ_URLS))
    default_pool = Settings.model_fields["db_read_pool_size"].default
    replicas, surge, remarks = _pods(manifests, deployment, environment)
    api = ApiPools(
        replicas=replicas,
        surge=surge,
        workers=_number(environment, "WEB_CONCURRENCY"),
        pool_size=_number(environment, "DB_POOL_SIZE"),
        max_overflow=_number(environment, "DB_MAX_OVERFLOW"),
        expensive_share=float(share) if (share := environment.get("DB_EXPENSIVE_SHARE")) else None,
        own_lanes=lanes.OWN_LANES,
        read_pool_size=_number(environment, "DB_READ_POOL_SIZE", default_pool) if reads else 0,
    )
    declared = _number(environment, "API_REPLICAS") + _number(environment, "API_SURGE")
    if declared < replicas + surge:
        remarks.append(
            f"API_REPLICAS + API_SURGE of the container are {declared}, but there can be {replicas + surge} pods: the"
            " check at its start does not see them all"
        )
    budget = Budget(api, _server(manifests, environment), _pooler(manifests, environment))
    sources = {"server": "the manifests"} | ({"pooler": "the manifests"} if budget.pooler else {})
    return BudgetReport(budget, sources, remarks=tuple(remarks))


def _manifests(text: str) -> Iterable[Manifest]:
    """Return the objects, those of a List too. Raise ConfigurationError if the text is no YAML."""
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ConfigurationError(f"the manifests are no YAML: {error}") from None
    for document in documents:
        if isinstance(document, dict):
            yield from document["items"] if document.get("kind") == "List" else [document]


def _of_kind(manifests: Iterable[Manifest], *kinds: str) -> list[Manifest]:
    return [each for each in manifests if each.get("kind") in kinds]


def _api(manifests: Sequence[Manifest]) -> tuple[Manifest, dict[str, str]]:
    """Return the API's Deployment, and the variables of its container.

    A value that is elsewhere, such as in a Secret, is represented by its source.
    """
    found = [
        (
            deployment,
            {each["name"]: each.get("value") or str(each.get("valueFrom", "")) for each in container.get("env", ())},
        )
        for deployment in _of_kind(manifests, "Deployment")
        for container in deployment["spec"]["template"]["spec"]["containers"]
        if container["name"] == _CONTAINER
    ]
    if len(found) != 1:
        raise ConfigurationError(
            f"the manifests have {len(found)} Deployments with a container named {_CONTAINER}, but must have one: give"
            " the output of `helm template`, of one release"
        )
    return found[0]


def _pods(
    manifests: Sequence[Manifest], deployment: Manifest, environment: Mapping[str, str]
) -> tuple[int, int, list[str]]:
    """Return the most pods of the API in normal operation, the most in addition to them, and remarks."""
    spec = deployment["spec"]
    maxima = [
        each["spec"].get("maxReplicas", each["spec"].get("maxReplicaCount", _KEDA_MAX_REPLICAS))
        for each in _of_kind(manifests, "HorizontalPodAutoscaler", "ScaledObject")
        if each["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    ]
    replicas: int = max(maxima, default=spec.get("replicas", 1))
    surge = _surge(spec.get("strategy", {}), replicas)
    limit = _quota(manifests, spec["template"]["spec"].get("priorityClassName"))
    if limit is not None:
        replicas = min(replicas, limit)
        return replicas, limit - replicas, []
    surge = max(surge, _number(environment, "API_SURGE"))
    return replicas, surge, [f"no ResourceQuota limits the pods: more than {surge} additional ones exceed the budget"]


def _surge(strategy: Manifest, replicas: int) -> int:
    """Return the number of pods that a rolling update adds. A share of the replicas is rounded up, as in Kubernetes."""
    if strategy.get("type") == "Recreate":
        return 0
    surge = (strategy.get("rollingUpdate") or {}).get("maxSurge", _MAX_SURGE)
    return surge if isinstance(surge, int) else -(-replicas * int(surge.removesuffix("%")) // 100)


def _quota(manifests: Sequence[Manifest], priority_class: str | None) -> int | None:
    """Return how many pods a ResourceQuota allows for the PriorityClass; None if there is no such quota."""
    limits = [
        int(each["spec"]["hard"]["pods"])
        for each in _of_kind(manifests, "ResourceQuota")
        for scope in each["spec"].get("scopeSelector", {}).get("matchExpressions", ())
        if scope["scopeName"] == "PriorityClass" and scope["operator"] == "In" and scope["values"] == [priority_class]
        if "pods" in each["spec"]["hard"]
    ]
    return min(limits, default=None)


def _server(manifests: Sequence[Manifest], environment: Mapping[str, str]) -> Server:
    """Return the server's limits: the settings', and those of CloudNativePG's Cluster if they are lower."""
    parameters = [each["spec"].get("postgresql", {}).get("parameters", {}) for each in _of_kind(manifests, "Cluster")]
    default = Server()
    share = _number(environment, "POSTGRES_MAX_CONNECTIONS", default.max_connections)
    reserved = {
        name: max(
            _number(environment, f"POSTGRES_{name.upper()}", getattr(default, name)),
            *(int(each.get(name, getattr(default, name))) for each in parameters),
            0,
        )
        for name in ("superuser_reserved_connections", "reserved_connections")
    }
    return Server(
        max_connections=min(share, *(int(each.get("max_connections", default.max_connections)) for each in parameters))
        if parameters
        else share,
        cores=_number(environment, "POSTGRES_CORES", 0) or None,
        **reserved,
    )


def _pooler(manifests: Sequence[Manifest], environment: Mapping[str, str]) -> Pooler | None:
    """Return PgBouncer's limits: those of CloudNativePG's Pooler, or else the settings'; None without PgBouncer."""
    if environment.get("DB_POOLER") != "pgbouncer":
        return None
    default = Pooler()
    limits = {
        name: _number(environment, f"PGBOUNCER_{name.upper()}", getattr(default, name))
        for name in ("max_client_conn", "default_pool_size", "reserve_pool_size", "max_db_connections", "instances")
    }
    for each in _of_kind(manifests, "Pooler"):
        spec = each["spec"]
        parameters = spec["pgbouncer"].get("parameters", {})
        for name in ("max_client_conn", "default_pool_size", "reserve_pool_size"):
            limits[name] = int(parameters.get(name, getattr(default, name)))
        # The role that looks up passwords connects to another database, for which the limit counts separately.
        limits["max_db_connections"] = 0
        quota = _quota(manifests, spec.get("template", {}).get("spec", {}).get("priorityClassName"))
        instances = spec.get("instances", 1)
        pods = instances + _surge(spec.get("deploymentStrategy", {}), instances)
        limits["instances"] = max(pods, limits["instances"]) if quota is None else quota
    return Pooler(**limits)


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Return a variable as a number. Raise ConfigurationError if it is none, or missing without a default."""
    text = environment.get(name)
    if not text and default is not None:
        return default
    if not text or not text.isdecimal():
        raise ConfigurationError(f"{name}: the container {_CONTAINER} must set it to a whole number, got {text!r}")
    return int(text)
