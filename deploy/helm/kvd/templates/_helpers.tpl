{{- define "kvd.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "kvd.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "kvd.selector" -}}
app.kubernetes.io/name: {{ include "kvd.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "kvd.labels" -}}
{{ include "kvd.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "kvd.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "kvd.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "kvd.image" -}}
{{- with .Values.image.registry }}{{ . }}/{{ end }}{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}

{{- /* "yes" where pods of all namespaces are looked for. */ -}}
{{- define "kvd.everywhere" -}}
{{- range .Values.discovery.pods -}}
{{- range .namespaces -}}
{{- if eq . "*" -}}yes{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* What is watched to find engines, as rules of a Role. */ -}}
{{- define "kvd.watches" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
{{- $groups := list -}}
{{- $services := "" -}}
{{- range .Values.discovery.pods -}}
{{- if .pool_name -}}
{{- $groups = append $groups (default "inference.networking.k8s.io" .pool_group) -}}
{{- end -}}
{{- if .service_name -}}
{{- $services = "yes" -}}
{{- end -}}
{{- end -}}
{{- range uniq $groups }}
- apiGroups: [{{ . }}]
  resources: [inferencepools]
  verbs: [get, list, watch]
{{- end }}
{{- if $services }}
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
{{- end }}
{{- end -}}
