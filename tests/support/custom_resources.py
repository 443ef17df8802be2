"""The custom resources of the chart: their fields, from the references of their operators.

CloudNativePG 1.30, its Barman Cloud plugin 0.14, KEDA 2.20, the Prometheus operator 0.93, Gateway API v1. Only fields
that the chart uses, or a user may want next, are here. Others are refused: an operator would drop a misspelled field
without a message.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Quantity = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]
Seconds = Annotated[str, Field(pattern=r"^\d+(ms|s|m|h)$")]
Labels = dict[Text, str]


class Closed(BaseModel):
    """A part of a custom resource. A number is no text, and a text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Metadata(Closed):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
    namespace: Text = "default"
    labels: Labels = {}
    annotations: Labels = {}


class Resource(Closed):
    apiVersion: Text
    kind: Text
    metadata: Metadata


class Name(Closed):
    name: Text


class Key(Closed):
    name: Text
    key: Text


class Selector(Closed):
    matchLabels: Labels


class Resources(Closed):
    requests: dict[Literal["cpu", "memory"], Quantity]
    limits: dict[Literal["cpu", "memory"], Quantity]


# CloudNativePG: Cluster.
class Synchronous(Closed):
    method: Literal["any", "first"]
    number: Positive
    dataDurability: Literal["required", "preferred"] = "required"


class PostgresConfiguration(Closed):
    parameters: Labels
    synchronous: Synchronous | None = None


class SqlRefs(Closed):
    configMapRefs: list[Key] = []
    secretRefs: list[Key] = []


class InitDb(Closed):
    database: Text
    owner: Text
    secret: Name
    dataChecksums: bool = False
    postInitApplicationSQLRefs: SqlRefs | None = None


class Bootstrap(Closed):
    initdb: InitDb


class Role(Closed):
    name: Text
    ensure: Literal["present", "absent"] = "present"
    login: bool = False
    inRoles: list[Text] = []
    connectionLimit: int = -1
    passwordSecret: Name | None = None


class Managed(Closed):
    roles: list[Role]


class Certificates(Closed):
    serverAltDNSNames: list[Text]


class Enabled(Closed):
    enabled: bool


class ReplicationSlots(Closed):
    highAvailability: Enabled


class Storage(Closed):
    size: Quantity
    storageClass: Text | None = None


class Affinity(Closed):
    enablePodAntiAffinity: bool
    podAntiAffinityType: Literal["preferred", "required"]
    topologyKey: Text
    nodeSelector: Labels = {}
    tolerations: list[dict[str, Any]] = []


class TopologySpread(Closed):
    maxSkew: Positive
    topologyKey: Text
    whenUnsatisfiable: Literal["DoNotSchedule", "ScheduleAnyway"]
    labelSelector: Selector


class ClusterPlugin(Closed):
    name: Text
    isWALArchiver: bool = False
    parameters: Labels = {}


class ClusterSpec(Closed):
    instances: Positive
    imageName: Text | None = None
    stopDelay: Positive
    smartShutdownTimeout: Positive
    switchoverDelay: Positive
    primaryUpdateStrategy: Literal["unsupervised", "supervised"]
    primaryUpdateMethod: Literal["switchover", "restart"]
    postgresql: PostgresConfiguration
    bootstrap: Bootstrap
    managed: Managed
    certificates: Certificates
    replicationSlots: ReplicationSlots
    storage: Storage
    walStorage: Storage | None = None
    resources: Resources
    affinity: Affinity
    topologySpreadConstraints: list[TopologySpread] = []
    plugins: list[ClusterPlugin] = []


class Cluster(Resource):
    spec: ClusterSpec


# CloudNativePG: Pooler. It refuses parameters that are not in its list.
PoolerParameter = Literal[
    "default_pool_size",
    "dns_nxdomain_ttl",
    "log_connections",
    "log_disconnections",
    "max_client_conn",
    "max_db_connections",
    "max_prepared_statements",
    "query_wait_timeout",
    "reserve_pool_size",
    "reserve_pool_timeout",
    "server_connect_timeout",
    "server_idle_timeout",
    "server_lifetime",
    "server_login_retry",
    "tcp_keepcnt",
    "tcp_keepidle",
    "tcp_keepintvl",
    "tcp_user_timeout",
]


class PgBouncer(Closed):
    poolMode: Literal["session", "transaction"]
    parameters: dict[PoolerParameter, str]


class RollingUpdate(Closed):
    maxSurge: Count
    maxUnavailable: Count


class DeploymentStrategy(Closed):
    type: Literal["RollingUpdate"]
    rollingUpdate: RollingUpdate


class PodTemplate(Closed):
    spec: dict[str, Any]  # tests validate it as the one of a Pod


class PoolerSpec(Closed):
    cluster: Name
    type: Literal["rw", "ro", "r"]
    instances: Positive
    deploymentStrategy: DeploymentStrategy
    pgbouncer: PgBouncer
    template: PodTemplate


class Pooler(Resource):
    spec: PoolerSpec


# CloudNativePG: backups with the Barman Cloud plugin.
class S3Credentials(Closed):
    accessKeyId: Key
    secretAccessKey: Key


class Compression(Closed):
    compression: Literal["gzip", "bzip2", "snappy"]


class WalCompression(Compression):
    maxParallel: Positive = 1


class ObjectStoreConfiguration(Closed):
    destinationPath: Annotated[str, Field(pattern="^s3://")]
    endpointURL: Text | None = None
    s3Credentials: S3Credentials
    wal: WalCompression
    data: Compression


class ObjectStoreSpec(Closed):
    retentionPolicy: Annotated[str, Field(pattern="^[1-9][0-9]*[dwm]$")]
    configuration: ObjectStoreConfiguration


class ObjectStore(Resource):
    spec: ObjectStoreSpec


class ScheduledBackupSpec(Closed):
    schedule: Annotated[str, Field(pattern=r"^(\S+ ){5}\S+$")]
    immediate: bool = False
    backupOwnerReference: Literal["none", "self", "cluster"]
    cluster: Name
    method: Literal["plugin"]
    pluginConfiguration: Name


class ScheduledBackup(Resource):
    spec: ScheduledBackupSpec


# KEDA.
class ScaleTarget(Closed):
    apiVersion: Literal["apps/v1"]
    kind: Literal["Deployment"]
    name: Text


class Fallback(Closed):
    failureThreshold: Positive
    replicas: Positive
    behavior: Literal["static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"]


class ScalingPolicy(Closed):
    type: Literal["Pods", "Percent"]
    value: Positive
    periodSeconds: Positive


class ScalingRules(Closed):
    stabilizationWindowSeconds: Annotated[int, Field(ge=0, le=3600)]
    policies: list[ScalingPolicy]


class Behavior(Closed):
    scaleDown: ScalingRules


class HpaConfiguration(Closed):
    behavior: Behavior


class Advanced(Closed):
    horizontalPodAutoscalerConfig: HpaConfiguration


class CpuMetadata(Closed):
    containerName: Text
    value: Text


class CpuTrigger(Closed):
    type: Literal["cpu"]
    metricType: Literal["Utilization", "AverageValue"]
    metadata: CpuMetadata


class PrometheusMetadata(Closed):
    serverAddress: Annotated[str, Field(pattern="^https?://")]
    query: Text
    threshold: Text
    ignoreNullValues: Literal["true", "false"] = "true"


class PrometheusTrigger(Closed):
    type: Literal["prometheus"]
    metricType: Literal["AverageValue", "Value"]
    metadata: PrometheusMetadata


class ScaledObjectSpec(Closed):
    scaleTargetRef: ScaleTarget
    pollingInterval: Positive
    minReplicaCount: Count
    maxReplicaCount: Positive
    fallback: Fallback
    advanced: Advanced
    triggers: list[CpuTrigger | PrometheusTrigger]


class ScaledObject(Resource):
    spec: ScaledObjectSpec


# The Prometheus operator.
class Endpoint(Closed):
    port: Text
    interval: Seconds = "30s"
    scrapeTimeout: Seconds = "10s"


class ServiceMonitorSpec(Closed):
    jobLabel: Text
    selector: Selector
    endpoints: list[Endpoint]


class ServiceMonitor(Resource):
    spec: ServiceMonitorSpec


class PodMonitorSpec(Closed):
    selector: Selector
    podMetricsEndpoints: list[Endpoint]


class PodMonitor(Resource):
    spec: PodMonitorSpec


class Rule(Closed):
    """A rule has `alert` or `record`."""

    expr: Text
    alert: Text | None = None
    record: Text | None = None
    for_: Seconds = Field(default="0s", alias="for")
    labels: Labels = {}
    annotations: Labels = {}


class RuleGroup(Closed):
    name: Text
    interval: Seconds
    rules: list[Rule]


class PrometheusRuleSpec(Closed):
    groups: list[RuleGroup]


class PrometheusRule(Resource):
    spec: PrometheusRuleSpec


# Gateway API.
class ParentRef(Closed):
    name: Text
    namespace: Text | None = None
    sectionName: Text | None = None


class PathMatch(Closed):
    type: Literal["Exact", "PathPrefix"]
    value: Annotated[str, Field(pattern="^/")]


class RouteMatch(Closed):
    path: PathMatch


class BackendRef(Closed):
    name: Text
    port: Annotated[int, Field(ge=1, le=65535)]


class RouteRule(Closed):
    matches: list[RouteMatch]
    backendRefs: list[BackendRef]


class HTTPRouteSpec(Closed):
    parentRefs: Annotated[list[ParentRef], Field(min_length=1)]
    hostnames: list[Text] = []
    rules: list[RouteRule]


class HTTPRoute(Resource):
    spec: HTTPRouteSpec


CUSTOM_RESOURCES: dict[tuple[str, str], type[Resource]] = {
    ("postgresql.cnpg.io/v1", "Cluster"): Cluster,
    ("postgresql.cnpg.io/v1", "Pooler"): Pooler,
    ("postgresql.cnpg.io/v1", "ScheduledBackup"): ScheduledBackup,
    ("barmancloud.cnpg.io/v1", "ObjectStore"): ObjectStore,
    ("keda.sh/v1alpha1", "ScaledObject"): ScaledObject,
    ("monitoring.coreos.com/v1", "ServiceMonitor"): ServiceMonitor,
    ("monitoring.coreos.com/v1", "PodMonitor"): PodMonitor,
    ("monitoring.coreos.com/v1", "PrometheusRule"): PrometheusRule,
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): HTTPRoute,
}
