{{/*
Annotations of every definition. Argo CD's apply on the client's side would copy a whole definition into an annotation,
which has a limit of 256 KiB.
*/}}
{{- define "foreshore-crds.annotations" -}}
{{- $own := dict "argocd.argoproj.io/sync-options" "ServerSideApply=true" -}}
{{- if .Values.crds.keep -}}
{{- $_ := set $own "helm.sh/resource-policy" "keep" -}}
{{- end -}}
{{- toYaml (merge (dict) .Values.crds.annotations $own) -}}
{{- end -}}
