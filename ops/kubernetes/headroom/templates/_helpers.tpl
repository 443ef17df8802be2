{{/* Name of the release's objects. */}}
{{- define "headroom.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels of each object. */}}
{{- define "headroom.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{ include "headroom.selector" . }}
{{- end -}}

{{/* Labels by which the release's pods are found. */}}
{{- define "headroom.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "headroom.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{/* PriorityClasses are cluster-wide, so their names contain the namespace. */}}
{{- define "headroom.priorityClass" -}}
{{ .root.Release.Namespace }}-{{ include "headroom.fullname" .root }}-{{ .of }}
{{- end -}}

{{- define "headroom.hasCluster" -}}
{{- if eq .Values.database.kind "cloudnative-pg" }}true{{ end -}}
{{- end -}}

{{- define "headroom.hasPooler" -}}
{{- if and (eq .Values.database.kind "cloudnative-pg") .Values.pooler.enabled }}true{{ end -}}
{{- end -}}

{{/* Parts of a pod that every workload of the image has. */}}
{{- define "headroom.pod" -}}
automountServiceAccountToken: false
# A Service named `api` would set API_PORT to a URL.
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with .Values.runAsUser }}
  runAsUser: {{ . }}
  runAsGroup: {{ . }}
  fsGroup: {{ . }}
  {{- end }}
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Parts of a container that every workload of the image has. */}}
{{- define "headroom.container" -}}
image: {{ include "headroom.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end -}}

{{/* Environment variables as a list, from a map of strings. */}}
{{- define "headroom.env" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end -}}

{{/* The secrets of a container as files. `keys` are those of the Secret. */}}
{{- define "headroom.secrets" -}}
- name: secrets
  projected:
    sources:
      - secret:
          name: {{ .root.Values.secretName }}
          items:
          {{- range .keys }}
            - { key: {{ . }}, path: {{ . }} }
          {{- end }}
          {{- if and (eq .root.Values.database.kind "external") .root.Values.database.external.ca }}
            - { key: database_ca, path: database_ca }
          {{- end }}
      {{- if include "headroom.hasCluster" .root }}
      - secret:
          name: {{ include "headroom.fullname" .root }}-db-ca
          items:
            - { key: ca.crt, path: database_ca }
      {{- end }}
{{- end -}}

{{/* Annotations of a pod that reads `keys` of the Secret. Another content replaces the pods in the next upgrade. Without a
cluster, as in `helm template` and Argo CD, the content is not known. */}}
{{- define "headroom.podAnnotations" -}}
{{- with .annotations }}{{ toYaml . }}
{{ end -}}
{{- $secret := lookup "v1" "Secret" .root.Release.Namespace .root.Values.secretName -}}
{{- with $secret.data -}}
{{- $read := dict -}}
{{- range $.keys }}{{ $read = set $read . (get $secret.data .) }}{{ end -}}
checksum/secrets: {{ $read | toJson | sha256sum }}
{{- end -}}
{{- end -}}

{{/* Settings that the chart sets itself. Others in `settings` would contradict the objects that it renders. */}}
{{- define "headroom.settings" -}}
{{- $own := include "headroom.budgetEnv" .root | fromYaml -}}
{{- $names := splitList " " "DRAIN_SECONDS GRACEFUL_TIMEOUT STARTUP_TIMEOUT EXPORTER_SCOPE METRICS_DIR API_HOST API_PORT EXPORTER_HOST EXPORTER_PORT DATABASE_URL DATABASE_READ_URL DB_READ_POOL_SIZE MIGRATION_DATABASE_URL EXPORTER_DATABASE_URL PGBOUNCER_ADMIN_URL SECRET_KEY SECRET_KEY_FALLBACKS" -}}
{{- range $names }}{{ $own = set $own . "" }}{{ end -}}
{{- range $name, $value := .settings -}}
{{- if or (hasKey $own $name) (hasKey $own (trimSuffix "_FILE" $name)) -}}
{{- fail (printf "%s.%s: the chart sets this variable itself: use the value that README.md lists" $.path $name) -}}
{{- end -}}
{{- end -}}
{{- toYaml .settings -}}
{{- end -}}

{{/* The path of the API behind an Ingress or a Gateway, which pass it on as it is. */}}
{{- define "headroom.path" -}}
{{- get .Values.api.settings "ROOT_PATH" | default "/" -}}
{{- end -}}

{{- define "headroom.monitoringPeers" }}
{{- with .Values.networkPolicy.monitoringNamespace }}
- namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: {{ . }} } }
{{- else }}
- namespaceSelector: {}
{{- end }}
{{- end }}

{{- define "headroom.egress" }}
- ports: [{ port: 53, protocol: UDP }, { port: 53, protocol: TCP }]
- {{- if eq .root.Values.database.kind "external" }}
  {{- with .root.Values.database.external.cidrs }}
  to:
  {{- range . }}
    - ipBlock: { cidr: {{ . }} }
  {{- end }}
  {{- end }}
  ports:
  {{- range .root.Values.database.external.ports }}
    - { port: {{ . }} }
  {{- end }}
  {{- else }}
  to:
    - podSelector: { matchLabels: { {{ .pods }} } }
  ports: [{ port: 5432 }]
  {{- end }}
{{- end }}

{{- define "headroom.scaleDown" }}
# One pod at a time, and not the next one before it is gone: terminating pods hold connections.
scaleDown:
  stabilizationWindowSeconds: {{ .Values.autoscaling.scaleDownSeconds }}
  policies:
    - { type: Pods, value: 1, periodSeconds: 60 }
{{- end }}
