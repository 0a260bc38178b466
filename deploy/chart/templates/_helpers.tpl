{{/* One release, one name for everything. */}}
{{- define "secrets-broker.name" -}}
{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "secrets-broker.selector" -}}
app.kubernetes.io/name: secrets-broker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "secrets-broker.labels" -}}
{{ include "secrets-broker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "secrets-broker.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "secrets-broker.priorityClassName" -}}
{{- with .Values.priorityClass -}}
{{- if or .create .name -}}
{{ .name | default (include "secrets-broker.name" $) }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* In a directory that the mounter makes for itself, on a volume of the two containers alone. */}}
{{- define "secrets-broker.mounterSocket" -}}
/run/mounter/private/mounter.sock
{{- end }}

{{/* What the chart itself configures. A change of it restarts the agents; .Values.config does not. */}}
{{- define "secrets-broker.generatedConfig" -}}
[agent]
log = {{ .Values.log.level | quote }}
log_format = {{ .Values.log.format | quote }}

# Processes of the host are in other namespaces than this pod: they have no identity here.
[sockets.host]
enabled = false

[sockets.metrics]
enabled = true
address = "${POD_IP}"
port = {{ int64 .Values.metrics.port }}
{{- with .Values.placement }}
{{- if .enabled }}

[placement]
pod_uid = "${POD_UID}"
{{- with .cgroupRoot }}
cgroup_root = {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- if ne .Values.podDirectory "none" }}

[pods]
directory = {{ .Values.podDirectory | quote }}
{{- end }}
{{- with .Values.nodeSocket }}
{{- if .enabled }}
{{- if not $.Values.placement.enabled }}
{{- fail "nodeSocket.enabled needs placement.enabled: its callers are told apart by the kernel" }}
{{- end }}
{{- if eq .proofAudience $.Values.csi.audience }}
{{- fail "nodeSocket.proofAudience is csi.audience, so callers' tokens would open Vault; choose another" }}
{{- end }}
{{- if eq $.Values.podDirectory "none" }}
{{- fail "nodeSocket.enabled needs podDirectory: apiserver, which names its callers" }}
{{- end }}

[sockets.node]
enabled = true
proof_audience = {{ .proofAudience | quote }}
proof_token = {{ .proofToken | quote }}
{{- end }}
{{- end }}

[csi]
enabled = true
{{- with .Values.csi }}
{{- if gt (int64 .volume.sizeKiB) (mul 1024 (int64 .volume.totalMiB)) }}
{{- fail "csi.volume.sizeKiB is more than csi.volume.totalMiB, so that no volume has room" }}
{{- end }}
driver = {{ .driver | quote }}
kubelet_root = {{ .kubeletRoot | quote }}
node = "${NODE_NAME}"
audience = {{ .audience | quote }}
verify = {{ .verify | quote }}
publish_timeout = {{ .publishTimeout | quote }}
volume_size = "{{ int64 .volume.sizeKiB }}KiB"
volume_inodes = {{ int64 .volume.inodes }}
volume_bytes_total = "{{ int64 .volume.totalMiB }}MiB"
{{- end }}
mounter_socket = {{ include "secrets-broker.mounterSocket" . | quote }}
{{- with .Values.csi.settings | trim }}
{{ . }}
{{- end }}
{{- end }}
