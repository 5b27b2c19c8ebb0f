package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sort"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	crdvalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

// DefinitionReport says what the API server would think of a CustomResourceDefinition.
type DefinitionReport struct {
	File     string     `json:"file"`
	Kind     string     `json:"kind"`
	Accepted bool       `json:"accepted"`
	Problems []Problem  `json:"problems"`
	Rules    []RuleCost `json:"rules"`
	// Cost is the estimated cost of all rules together; CostLimit is what the API server accepts.
	Cost      uint64 `json:"cost"`
	CostLimit uint64 `json:"costLimit"`
}

// RuleCost is the worst case that the API server reckons with for one rule.
type RuleCost struct {
	Kind      string `json:"kind"`
	Path      string `json:"path"`
	Rule      string `json:"rule"`
	Cost      uint64 `json:"cost"`
	CostLimit uint64 `json:"costLimit"`
}

// kind holds what is needed to judge objects of one kind.
type kind struct {
	group, version, kind string
	structural           *schema.Structural
	structure            crdvalidation.SchemaValidator
	rules                *cel.Validator
	scale                *apiextensions.CustomResourceSubresourceScale
}

type kinds map[string]*kind

func loadDefinitions(folder string) (kinds, []DefinitionReport, error) {
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil {
		return nil, nil, err
	}
	if len(files) == 0 {
		return nil, nil, fmt.Errorf("no manifests in %s", folder)
	}
	sort.Strings(files)
	all := kinds{}
	var reports []DefinitionReport
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		loaded, report, err := loadDefinition(text)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", file, err)
		}
		report.File = filepath.Base(file)
		reports = append(reports, report)
		all[loaded.kind] = loaded
	}
	return all, reports, nil
}

func loadDefinition(text []byte) (*kind, DefinitionReport, error) {
	var external apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &external); err != nil {
		return nil, DefinitionReport{}, err
	}
	apiextensionsv1.SetObjectDefaults_CustomResourceDefinition(&external)
	var crd apiextensions.CustomResourceDefinition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&external, &crd, nil); err != nil {
		return nil, DefinitionReport{}, err
	}
	// The registry fills this in before it validates.
	crd.Status.StoredVersions = []string{crd.Spec.Versions[0].Name}
	report := DefinitionReport{Kind: crd.Spec.Names.Kind, Problems: []Problem{}, CostLimit: validation.StaticEstimatedCRDCostLimit}
	for _, problem := range validation.ValidateCustomResourceDefinition(context.Background(), &crd) {
		report.Problems = append(report.Problems, problemOf(problem))
	}
	report.Accepted = len(report.Problems) == 0

	props := crd.Spec.Validation
	if props == nil {
		props = crd.Spec.Versions[0].Schema
	}
	structural, err := schema.NewStructural(props.OpenAPIV3Schema)
	if err != nil {
		return nil, report, err
	}
	structure, _, err := crdvalidation.NewSchemaValidator(props.OpenAPIV3Schema)
	if err != nil {
		return nil, report, err
	}
	report.Rules, err = costs(crd.Spec.Names.Kind, field.NewPath("spec"), props.OpenAPIV3Schema)
	if err != nil {
		return nil, report, err
	}
	for _, rule := range report.Rules {
		report.Cost = addWithoutOverflow(report.Cost, rule.Cost)
	}
	var scale *apiextensions.CustomResourceSubresourceScale
	if subresources := crd.Spec.Subresources; subresources != nil {
		scale = subresources.Scale
	}
	return &kind{
		group:      crd.Spec.Group,
		version:    crd.Spec.Versions[0].Name,
		kind:       crd.Spec.Names.Kind,
		structural: structural,
		structure:  structure,
		rules:      cel.NewValidator(structural, true, celconfig.PerCallLimit),
		scale:      scale,
	}, report, nil
}

// costs walks a schema and estimates each of its rules, messages included, as the API server does.
func costs(kind string, _ *field.Path, root *apiextensions.JSONSchemaProps) ([]RuleCost, error) {
	base := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion(), true)
	var found []RuleCost
	var walk func(path string, props *apiextensions.JSONSchemaProps, context *validation.CELSchemaContext) error
	walk = func(path string, props *apiextensions.JSONSchemaProps, context *validation.CELSchemaContext) error {
		if len(props.XValidations) > 0 {
			info, err := context.TypeInfo()
			if err != nil {
				return err
			}
			results, err := cel.Compile(info.Schema, info.DeclType, celconfig.PerCallLimit, base, cel.NewExpressionsEnvLoader())
			if err != nil {
				return err
			}
			for index, result := range results {
				cardinality := uint64(1)
				if context.MaxCardinality != nil {
					cardinality = *context.MaxCardinality
				} else {
					cardinality = math.MaxUint64
				}
				found = append(found, RuleCost{
					Kind:      kind,
					Path:      path,
					Rule:      props.XValidations[index].Rule,
					Cost:      timesWithoutOverflow(max(result.MaxCost, result.MessageExpressionMaxCost), cardinality),
					CostLimit: validation.StaticEstimatedCostLimit,
				})
			}
		}
		for name := range props.Properties {
			child := props.Properties[name]
			if err := walk(path+"."+name, &child, context.ChildPropertyContext(&child, name)); err != nil {
				return err
			}
		}
		if props.AdditionalProperties != nil && props.AdditionalProperties.Schema != nil {
			child := props.AdditionalProperties.Schema
			if err := walk(path+"{}", child, context.ChildAdditionalPropertiesContext(child)); err != nil {
				return err
			}
		}
		if props.Items != nil && props.Items.Schema != nil {
			child := props.Items.Schema
			if err := walk(path+"[]", child, context.ChildItemsContext(child)); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk("", root, validation.RootCELContext(root)); err != nil {
		return nil, err
	}
	sort.SliceStable(found, func(i, j int) bool { return found[i].Cost > found[j].Cost })
	return found, nil
}

func timesWithoutOverflow(a, b uint64) uint64 {
	if a != 0 && b > math.MaxUint64/a {
		return math.MaxUint64
	}
	return a * b
}

func addWithoutOverflow(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

func printCosts(reports []DefinitionReport) {
	for _, report := range reports {
		fmt.Fprintf(os.Stderr, "%s: %d of %d\n", report.Kind, report.Cost, report.CostLimit)
		for _, rule := range report.Rules {
			fmt.Fprintf(os.Stderr, "  %10d of %d  %s  %s\n", rule.Cost, rule.CostLimit, rule.Path, rule.Rule)
		}
	}
}
