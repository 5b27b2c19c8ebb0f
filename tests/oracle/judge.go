package main

import (
	"context"
	"fmt"
	"sort"

	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
)

// Verdict is what the API server would answer to `kubectl apply --validate=strict`.
type Verdict struct {
	ID       string    `json:"id"`
	Accepted bool      `json:"accepted"`
	Problems []Problem `json:"problems"`
}

// Problem is one thing that is wrong with an object.
type Problem struct {
	// Path is the field, as Kubernetes writes it; empty for the object as a whole.
	Path string `json:"path"`
	// Type is the API server's kind of error.
	Type   string `json:"type"`
	Detail string `json:"detail"`
}

func problemOf(err *field.Error) Problem {
	path := err.Field
	if path == "<nil>" {
		path = ""
	}
	return Problem{Path: path, Type: string(err.Type), Detail: err.ErrorBody()}
}

// decode reads JSON as the API server does: whole numbers become integers.
func decode(text []byte) (map[string]interface{}, error) {
	var value map[string]interface{}
	if err := utiljson.Unmarshal(text, &value); err != nil {
		return nil, err
	}
	return value, nil
}

func (all kinds) judge(input Input) (Verdict, error) {
	verdict := Verdict{ID: input.ID, Problems: []Problem{}}
	object := unstructured.Unstructured{Object: input.Document}
	judged, known := all[object.GetKind()]
	if !known || object.GetAPIVersion() != judged.group+"/"+judged.version {
		verdict.Problems = append(verdict.Problems, Problem{Path: "kind", Type: "UnknownKind", Detail: fmt.Sprintf("no matches for kind %q in version %q", object.GetKind(), object.GetAPIVersion())})
		return verdict, nil
	}
	problems, err := judged.judge(input.Document, input.Old)
	if err != nil {
		return verdict, err
	}
	verdict.Problems = append(verdict.Problems, problems...)
	verdict.Accepted = len(verdict.Problems) == 0
	sort.SliceStable(verdict.Problems, func(i, j int) bool { return verdict.Problems[i].Path < verdict.Problems[j].Path })
	return verdict, nil
}

// judge follows the path of a create (or, with old, an update) request: apiserver/customresource_handler.go for what
// is decoded and pruned, registry/customresource/strategy.go for what is validated.
func (k *kind) judge(document, old map[string]interface{}) ([]Problem, error) {
	content, problems, err := k.admit(document)
	if err != nil || content == nil {
		return problems, err
	}
	object := &unstructured.Unstructured{Object: content}

	var errs field.ErrorList
	errs = append(errs, apivalidation.ValidateObjectMetaAccessor(object, true, apivalidation.NameIsDNSSubdomain, field.NewPath("metadata"))...)
	errs = append(errs, crdvalidation.ValidateCustomResource(nil, content, k.structure)...)
	errs = append(errs, objectmeta.Validate(nil, content, k.structural, false)...)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, k.structural, content)...)
	if k.rules != nil && !blocking(errs) {
		var oldContent interface{}
		if old != nil {
			admitted, _, err := k.admit(old)
			if err != nil {
				return nil, err
			}
			oldContent = admitted
		}
		found, _ := k.rules.Validate(context.Background(), nil, k.structural, content, oldContent, celconfig.RuntimeCELCostBudget)
		errs = append(errs, found...)
	}
	for _, err := range errs {
		problems = append(problems, problemOf(err))
	}
	return problems, nil
}

// admit decodes metadata, prunes unknown fields and nulls, and drops the status, which only its own subresource may set.
func (k *kind) admit(document map[string]interface{}) (map[string]interface{}, []Problem, error) {
	content := (&unstructured.Unstructured{Object: document}).DeepCopy().Object
	var problems []Problem
	unknown := func(paths []string) {
		for _, path := range paths {
			problems = append(problems, Problem{Path: path, Type: "UnknownField", Detail: "unknown field"})
		}
	}
	meta, foundMeta, unknownMeta, err := objectmeta.GetObjectMetaWithOptions(content, objectmeta.ObjectMetaOptions{ReturnUnknownFieldPaths: true})
	if err != nil {
		// What can't be decoded is refused before anything else is looked at.
		return nil, []Problem{{Path: "metadata", Type: "Undecodable", Detail: err.Error()}}, nil
	}
	if !foundMeta {
		return nil, []Problem{{Path: "metadata", Type: "Required", Detail: "no metadata"}}, nil
	}
	unknown(unknownMeta)
	if meta.Namespace == "" {
		// The request names it: `kubectl` that of its context, we that of the folder.
		meta.Namespace = "default"
	}
	delete(content, "status")
	unknown(pruning.PruneWithOptions(content, k.structural, true, schema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}))
	defaulting.PruneNonNullableNullsWithoutDefaults(content, k.structural)
	if err := objectmeta.SetObjectMeta(content, meta); err != nil {
		return nil, nil, err
	}
	return content, problems, nil
}

// blocking tells whether rules are left out, as hasBlockingErr of the strategy does.
func blocking(errs field.ErrorList) bool {
	for _, err := range errs {
		switch err.Type {
		case field.ErrorTypeNotSupported, field.ErrorTypeRequired, field.ErrorTypeTooLong, field.ErrorTypeTooMany, field.ErrorTypeTypeInvalid:
			return true
		}
	}
	return false
}
