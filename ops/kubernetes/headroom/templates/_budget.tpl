{{/*
The connection budget: the arithmetic of app/budget/model.py, of which it prints the same table. Tests compare the two.
*/}}

{{/* The most pods of the API: the autoscaler's maximum, the surge of a rolling update, and terminating pods. */}}
{{- define "headroom.apiPods" -}}
{{- add (include "headroom.apiReplicas" .) .Values.api.surge .Values.api.terminating -}}
{{- end -}}

{{- define "headroom.apiReplicas" -}}
{{- ternary .Values.api.replicas .Values.autoscaling.maxReplicas (eq .Values.autoscaling.kind "none") | int -}}
{{- end -}}

{{- define "headroom.poolerPods" -}}
{{- with .Values.pooler }}{{ add .instances .surge .terminating }}{{ end -}}
{{- end -}}

{{/* The terms of the budget as environment variables, for the API, the migration job and the exporter. */}}
{{- define "headroom.budgetEnv" -}}
DB_BUDGET: enforce
DB_POOLER: {{ ternary "pgbouncer" "none" .Values.pooler.enabled }}
API_REPLICAS: {{ include "headroom.apiReplicas" . | quote }}
API_SURGE: {{ add .Values.api.surge .Values.api.terminating | quote }}
WEB_CONCURRENCY: {{ .Values.api.workers | int | quote }}
DB_POOL_SIZE: {{ .Values.api.pool.size | int | quote }}
DB_MAX_OVERFLOW: {{ .Values.api.pool.maxOverflow | int | quote }}
{{- if .Values.readReplicas.enabled }}
DB_READ_POOL_SIZE: {{ .Values.readReplicas.poolSize | int | quote }}
{{- end }}
POSTGRES_MAX_CONNECTIONS: {{ sub .Values.database.maxConnections .Values.database.otherConnections | quote }}
POSTGRES_SUPERUSER_RESERVED_CONNECTIONS: {{ .Values.database.superuserReservedConnections | int | quote }}
POSTGRES_RESERVED_CONNECTIONS: {{ .Values.database.reservedConnections | int | quote }}
{{- if .Values.pooler.enabled }}
PGBOUNCER_CONSOLE: "off"
PGBOUNCER_INSTANCES: {{ include "headroom.poolerPods" . | quote }}
PGBOUNCER_MAX_CLIENT_CONN: {{ .Values.pooler.maxClientConnections | int | quote }}
PGBOUNCER_DEFAULT_POOL_SIZE: {{ .Values.pooler.poolSize | int | quote }}
PGBOUNCER_RESERVE_POOL_SIZE: {{ .Values.pooler.reservePoolSize | int | quote }}
{{- end }}
{{- end -}}

{{/* The inequalities as JSON: name, demanded and supplied terms, each with name, connections and formula. */}}
{{- define "headroom.budget" -}}
{{- $api := .Values.api -}}
{{- $pooler := .Values.pooler -}}
{{- $replicas := include "headroom.apiReplicas" . | int -}}
{{- $surge := add $api.surge $api.terminating -}}
{{- $size := $api.pool.size | int -}}
{{- $overflow := $api.pool.maxOverflow | int -}}
{{- $workers := $api.workers | int -}}
{{- $apiTerm := dict "name" "api"
    "connections" (mul (add $replicas $surge) $workers (add $size $overflow))
    "formula" (printf "api = (API_REPLICAS %d + API_SURGE %d) * WEB_CONCURRENCY %d * (DB_POOL_SIZE %d + DB_MAX_OVERFLOW %d)" $replicas $surge $workers $size $overflow) -}}
{{- $reads := .Values.readReplicas.poolSize | int -}}
{{- $readTerm := dict "name" "reads"
    "connections" (mul (add $replicas $surge) $workers $reads)
    "formula" (printf "reads = (API_REPLICAS %d + API_SURGE %d) * WEB_CONCURRENCY %d * DB_READ_POOL_SIZE %d" $replicas $surge $workers $reads) -}}
{{- $supplied := list
    (dict "name" "max_connections" "connections" (sub .Values.database.maxConnections .Values.database.otherConnections))
    (dict "name" "superuser_reserved_connections" "connections" (sub 0 .Values.database.superuserReservedConnections))
    (dict "name" "reserved_connections" "connections" (sub 0 .Values.database.reservedConnections)) -}}
{{- $programs := list
    (dict "name" "migrate" "connections" 2) (dict "name" "exporter" "connections" 1) (dict "name" "admin" "connections" 1) -}}
{{- $inequalities := list (dict "name" "server connections" "demanded" (prepend $programs $apiTerm) "supplied" $supplied) -}}
{{- if $pooler.enabled -}}
{{- $pods := include "headroom.poolerPods" . | int -}}
{{- $poolSize := $pooler.poolSize | int -}}
{{- $reserve := $pooler.reservePoolSize | int -}}
{{- $poolerTerm := dict "name" "pgbouncer"
    "connections" (mul $pods 2 (add $poolSize $reserve))
    "formula" (printf "pgbouncer = %s2 pools * (default_pool_size %d + reserve_pool_size %d), max_db_connections none" (ternary "" (printf "PGBOUNCER_INSTANCES %d * " $pods) (eq $pods 1)) $poolSize $reserve) -}}
{{- $clients := list (dict "name" "exporter" "connections" 1) (dict "name" "admin" "connections" 1) -}}
{{- $inequalities = list
    (dict "name" "server connections" "demanded" (prepend $programs $poolerTerm) "supplied" $supplied)
    (dict "name" "pooler clients" "demanded" (prepend $clients $apiTerm) "supplied" (list (dict "name" "max_client_conn" "connections" ($pooler.maxClientConnections | int)))) -}}
{{- end -}}
{{- /* All workers may read from one standby, so each must admit them. Its limits are those of the primary. */ -}}
{{- if .Values.readReplicas.enabled -}}
{{- $inequalities = append $inequalities (dict "name" "read server connections" "demanded" (list $readTerm) "supplied" $supplied) -}}
{{- end -}}
{{- toJson $inequalities -}}
{{- end -}}

{{/* The table for people. */}}
{{- define "headroom.budgetTable" -}}
{{- $rows := list -}}
{{- $formulas := list -}}
{{- range include "headroom.budget" . | fromJsonArray -}}
{{- $rows = append $rows (list .name "") -}}
{{- $demand := 0 -}}
{{- range .demanded -}}
{{- $demand = add $demand .connections -}}
{{- $rows = append $rows (list (printf "  %s" .name) (.connections | int | toString)) -}}
{{- with .formula }}{{ $formulas = append $formulas . }}{{ end -}}
{{- end -}}
{{- $rows = append $rows (list "  = demand" ($demand | toString)) -}}
{{- $supply := 0 -}}
{{- range .supplied -}}
{{- $supply = add $supply .connections -}}
{{- $rows = append $rows (list (printf "  %s" .name) (.connections | int | toString)) -}}
{{- end -}}
{{- $supply = max 0 $supply -}}
{{- $left := sub $supply $demand -}}
{{- $rows = append $rows (list "  = supply" ($supply | toString)) -}}
{{- $rows = append $rows (list "  headroom" (printf "%6d%s" $left (ternary "   OVER BUDGET" "" (lt $left 0)))) -}}
{{- end -}}
{{- $width := 0 -}}
{{- range $rows }}{{ $width = max $width (len (first .)) }}{{ end -}}
{{- range $rows }}
{{- if last . }}{{ printf "%-*s  %6s" (int $width) (first .) (last .) }}{{ else }}{{ first . }}{{ end }}
{{ end }}
{{ join "\n" (uniq $formulas) }}
{{- end -}}

{{/* Fail, with the table, if the connections do not fit. */}}
{{- define "headroom.checkBudget" -}}
{{- $table := include "headroom.budgetTable" . -}}
{{- if contains "OVER BUDGET" $table -}}
{{- fail (printf "the connections do not fit: lower autoscaling.maxReplicas, api.workers, api.pool or readReplicas.poolSize, or raise the limits\n\n%s\n" $table) -}}
{{- end -}}
{{- end -}}
