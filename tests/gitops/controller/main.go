// Command argocd is what of Argo CD acts on a cluster, in one program: the controller, the server that renders what is in
// Git, and what those two need beside them. Which of them it is, its name or its first argument says.
package main

import (
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	controller "github.com/argoproj/argo-cd/v3/cmd/argocd-application-controller/commands"
	renderer "github.com/argoproj/argo-cd/v3/cmd/argocd-repo-server/commands"
	"github.com/spf13/cobra"
	kustomize "sigs.k8s.io/kustomize/kustomize/v5/commands"
)

var components = map[string]func() error{
	"argocd-application-controller": func() error { return run(controller.NewCommand()) },
	"argocd-repo-server":            func() error { return run(renderer.NewCommand()) },
	"kustomize":                     func() error { return run(kustomize.NewDefaultCommand()) },
	"redis":                         redis,
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, known := components[name]; !known && len(os.Args) > 1 {
		name = os.Args[1]
		os.Args = os.Args[1:]
	}
	component, known := components[name]
	if !known {
		names := slices.Sorted(maps.Keys(components))
		fmt.Fprintf(os.Stderr, "found component %q; allowed: %s\n", name, strings.Join(names, ", "))
		os.Exit(2)
	}
	if err := component(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(command *cobra.Command) error {
	return command.Execute()
}

// redis is where the two keep what they have seen. This one's time stands still unless it is told that it went on.
func redis() error {
	if len(os.Args) != 2 {
		return fmt.Errorf("found %d arguments; allowed: the address to listen on", len(os.Args)-1)
	}
	server := miniredis.NewMiniRedis()
	if err := server.StartAddr(os.Args[1]); err != nil {
		return err
	}
	defer server.Close()
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	for seconds := time.Tick(time.Second); ; {
		select {
		case <-seconds:
			server.FastForward(time.Second)
		case <-end:
			return nil
		}
	}
}
