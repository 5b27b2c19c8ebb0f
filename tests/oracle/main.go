// Command oracle judges manifests exactly as the Kubernetes API server would, with its own code and without a
// cluster. It is what foreshore-crds' judge is held against; see README.md.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// Report is what the oracle prints: one JSON document.
type Report struct {
	Definitions []DefinitionReport `json:"definitions"`
	Verdicts    []Verdict          `json:"verdicts"`
}

// Input is one line on standard input: a document to judge, and the stored one that it would replace.
type Input struct {
	ID       string                 `json:"id"`
	Document map[string]interface{} `json:"document"`
	Old      map[string]interface{} `json:"old,omitempty"`
}

func main() {
	definitions := flag.String("crds", "../../crds/manifests", "folder of CustomResourceDefinition manifests")
	examples := flag.String("examples", "", "folder of YAML examples to judge, each document under the ID FILE#INDEX")
	stdin := flag.Bool("stdin", false, "judge JSON lines of standard input: {\"id\":…,\"document\":…,\"old\":…}")
	costs := flag.Bool("costs", false, "list the estimated cost of every rule, dearest first, on standard error")
	flag.Parse()

	report, err := run(*definitions, *examples, *stdin, *costs)
	if err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, "oracle:", err)
		os.Exit(1)
	}
}

func run(definitions, examples string, stdin, costs bool) (*Report, error) {
	kinds, reports, err := loadDefinitions(definitions)
	if err != nil {
		return nil, err
	}
	if costs {
		printCosts(reports)
	}
	report := &Report{Definitions: reports, Verdicts: []Verdict{}}
	judge := func(input Input) error {
		verdict, err := kinds.judge(input)
		if err != nil {
			return fmt.Errorf("%s: %w", input.ID, err)
		}
		report.Verdicts = append(report.Verdicts, verdict)
		return nil
	}
	if examples != "" {
		if err := eachExample(examples, judge); err != nil {
			return nil, err
		}
	}
	if stdin {
		if err := eachLine(os.Stdin, judge); err != nil {
			return nil, err
		}
	}
	return report, nil
}

// eachExample reads every document of every YAML file below a folder. A file with the line `# transition` holds the
// stored document first and the one that replaces it second.
func eachExample(folder string, judge func(Input) error) error {
	var files []string
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && strings.HasSuffix(path, ".yaml") {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	sort.Strings(files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		documents, err := parseDocuments(text)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		relative, err := filepath.Rel(folder, file)
		if err != nil {
			return err
		}
		id := func(index int) string { return fmt.Sprintf("%s#%d", filepath.ToSlash(relative), index) }
		if isTransition(string(text)) {
			if len(documents) != 2 {
				return fmt.Errorf("%s: found %d documents in a transition, allowed 2", file, len(documents))
			}
			if err := judge(Input{ID: id(1), Document: documents[1], Old: documents[0]}); err != nil {
				return err
			}
			continue
		}
		for index, document := range documents {
			if err := judge(Input{ID: id(index), Document: document}); err != nil {
				return err
			}
		}
	}
	return nil
}

func isTransition(text string) bool {
	for _, line := range strings.Split(text, "\n") {
		if strings.TrimSpace(line) == "# transition" {
			return true
		}
		if !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return false
}

func parseDocuments(text []byte) ([]map[string]interface{}, error) {
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(string(text))))
	var documents []map[string]interface{}
	for {
		part, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return documents, nil
		}
		if err != nil {
			return nil, err
		}
		asJSON, err := yaml.YAMLToJSONStrict(part)
		if err != nil {
			return nil, err
		}
		document, err := decode(asJSON)
		if err != nil {
			return nil, err
		}
		if document != nil {
			documents = append(documents, document)
		}
	}
}

func eachLine(reader io.Reader, judge func(Input) error) error {
	scanner := bufio.NewScanner(reader)
	scanner.Buffer(make([]byte, 0, 1<<20), 64<<20)
	for scanner.Scan() {
		var line struct {
			ID       string          `json:"id"`
			Document json.RawMessage `json:"document"`
			Old      json.RawMessage `json:"old"`
		}
		if err := json.Unmarshal(scanner.Bytes(), &line); err != nil {
			return err
		}
		input := Input{ID: line.ID}
		var err error
		if input.Document, err = decode(line.Document); err != nil {
			return fmt.Errorf("%s: %w", line.ID, err)
		}
		if len(line.Old) > 0 {
			if input.Old, err = decode(line.Old); err != nil {
				return fmt.Errorf("%s: %w", line.ID, err)
			}
		}
		if err := judge(input); err != nil {
			return err
		}
	}
	return scanner.Err()
}
