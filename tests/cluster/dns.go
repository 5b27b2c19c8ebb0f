package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"
	"github.com/spf13/cobra"

	_ "github.com/coredns/coredns/plugin/bind" // what the cluster's Corefile names, and nothing else
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/template"
)

// lookupLimit is how long a name server has for its answer.
const lookupLimit = time.Second

// coredns answers for names of the cluster. A request passes the plugins in the order given here.
func coredns() {
	dnsserver.Directives = []string{"bind", "errors", "cache", "kubernetes", "template"}
	coremain.Run()
}

// lookupCommand asks the name server at an address for the addresses of a name, whatever the machine's own name server
// would say.
func lookupCommand() *cobra.Command {
	return &cobra.Command{
		Use:  "lookup SERVER NAME",
		Args: cobra.ExactArgs(2),
		RunE: func(command *cobra.Command, arguments []string) error {
			resolver := net.Resolver{
				PreferGo: true,
				Dial: func(context context.Context, network, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(context, network, net.JoinHostPort(arguments[0], "53"))
				},
			}
			limited, cancel := context.WithTimeout(command.Context(), lookupLimit)
			defer cancel()
			addresses, err := resolver.LookupHost(limited, arguments[1])
			if err != nil {
				return err
			}
			for _, address := range addresses {
				fmt.Println(address)
			}
			return nil
		},
	}
}
