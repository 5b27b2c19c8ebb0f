{{- define "foreshore.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of all objects. Longer names would not fit the DNS name of the Service and suffixes of Roles. */}}
{{- define "foreshore.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "foreshore.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "foreshore.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Roles outside of the release's namespace carry its name, so that two releases do not claim the same one. */}}
{{- define "foreshore.clusterName" -}}
{{- printf "%s:%s" .Release.Namespace (include "foreshore.fullname" .) -}}
{{- end -}}

{{- define "foreshore.selectorLabels" -}}
app.kubernetes.io/name: {{ include "foreshore.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "foreshore.labels" -}}
{{ include "foreshore.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: foreshore
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "foreshore.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "foreshore.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "foreshore.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/*
The operator's rights in a namespace that it watches: rules of a ClusterRole, or of a Role in each watched namespace.
*/}}
{{- define "foreshore.watchedRules" -}}
# The plant, as its owners wrote it. The operator never writes what they wrote, only the status.
- apiGroups: [foreshore.dev]
  resources: ["*"]
  verbs: [get, list, watch]
- apiGroups: [foreshore.dev]
  resources: ["*/status"]
  verbs: [patch]
# Credentials that an object names, by their name; never a list of what else there is.
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
# The trust bundle beside role pods. Server-side apply is create and patch.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch, delete]
# What role pods are made of. List and watch notice what others changed; delete removes what no object asks for any more.
- apiGroups: [""]
  resources: [services, serviceaccounts]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments, statefulsets]
  verbs: [get, list, watch, create, patch, delete]
# Versions that run on while a newer one is wrong, for whoever leads next.
- apiGroups: [apps]
  resources: [controllerrevisions]
  verbs: [list, create, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
# Why a role does not run, and on which volume a broker waits; who a role is comes from its pod and that pod's owner.
- apiGroups: [""]
  resources: [pods, persistentvolumeclaims]
  verbs: [get, list, watch]
# What happened, for kubectl describe.
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{/* Secret with the authority that somebody else looks after; empty where the operator makes its own. */}}
{{- define "foreshore.authoritySecret" -}}
{{- if and .Values.authority.certManager.enabled (not .Values.authority.secretName) -}}
{{ include "foreshore.fullname" . }}-given-authority
{{- else -}}
{{ .Values.authority.secretName }}
{{- end -}}
{{- end -}}
