// A client of the open SDK of Azure IoT Operations: its state store client, its leased lock, and a command between two
// clients, against the broker on a port of the loopback address. It ends with "done", or says what was not as the SDK
// promises.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strconv"
	"time"

	"github.com/Azure/iot-operations-sdks/go/mqtt"
	"github.com/Azure/iot-operations-sdks/go/protocol"
	"github.com/Azure/iot-operations-sdks/go/protocol/hlc"
	"github.com/Azure/iot-operations-sdks/go/services/leasedlock"
	"github.com/Azure/iot-operations-sdks/go/services/statestore"
	storeerrors "github.com/Azure/iot-operations-sdks/go/services/statestore/errors"
)

// Longer than anything takes on a machine that has much else to do.
const generous = time.Minute

type store = statestore.Client[string, string]

func main() {
	log.SetFlags(0)
	port, err := strconv.ParseUint(os.Args[1], 10, 16)
	check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 5*generous)
	defer cancel()
	app := must(protocol.NewApplication())
	first, second := connect("sdk-first", uint16(port)), connect("sdk-second", uint16(port))
	a, b := open(ctx, app, first), open(ctx, app, second)

	keys(ctx, a, b)
	conditions(ctx, a)
	notifications(ctx, a, b)
	expiry(ctx, a)
	fencing(ctx, a, b)
	locks(ctx, a, b)
	commands(ctx, app, first, second)

	a.Close()
	b.Close()
	check(first.Stop())
	check(second.Stop())
	fmt.Println("done")
}

func connect(id string, port uint16) *mqtt.SessionClient {
	client := must(mqtt.NewSessionClient(id, mqtt.TCPConnection("127.0.0.1", port)))
	check(client.Start())
	return client
}

func open(ctx context.Context, app *protocol.Application, client *mqtt.SessionClient) *store {
	opened := must(statestore.New[string, string](app, client))
	check(opened.Start(ctx))
	return opened
}

func keys(ctx context.Context, a, b *store) {
	missing := must(a.Get(ctx, "k"))
	expect("a key that does not exist has no version", missing.Version.IsZero() && missing.Value == "")
	set := must(a.Set(ctx, "k", "v\r\n\x00"))
	expect("a key is set", set.Value && !set.Version.IsZero())
	get := must(b.Get(ctx, "k"))
	expect("another client reads it", get.Value == "v\r\n\x00")
	expect("with its version", get.Version.Compare(set.Version) == 0)
	again := must(b.Set(ctx, "k", "w"))
	expect("versions grow", again.Version.Compare(set.Version) > 0)
	must(a.Set(ctx, "empty", "", statestore.WithPersist(true)))
	empty := must(a.Get(ctx, "empty"))
	expect("an empty value is a value", empty.Value == "" && !empty.Version.IsZero())
	expect("a key is deleted", must(a.Del(ctx, "k")).Value == 1)
	expect("once", must(b.Del(ctx, "k")).Value == 0)
}

func conditions(ctx context.Context, a *store) {
	expect("NX sets a new key", must(a.Set(ctx, "c", "1", statestore.NotExists)).Value)
	expect("NX sets no known key", !must(a.Set(ctx, "c", "1", statestore.NotExists)).Value)
	expect("NEX sets no other value", !must(a.Set(ctx, "c", "2", statestore.NotExistsOrEqual)).Value)
	expect("NEX sets the same value", must(a.Set(ctx, "c", "1", statestore.NotExistsOrEqual)).Value)
	expect("VDEL deletes no other value", must(a.VDel(ctx, "c", "2")).Value == -1)
	expect("VDEL deletes the value", must(a.VDel(ctx, "c", "1")).Value == 1)
	expect("VDEL deletes nothing", must(a.VDel(ctx, "c", "1")).Value == 0)
}

func notifications(ctx context.Context, a, b *store) {
	changes, done := a.Notify("watched")
	defer done()
	check(a.KeyNotify(ctx, "watched"))
	set := must(b.Set(ctx, "watched", "1"))
	change := next(changes)
	expect("a change is told", change.Operation == "SET" && change.Key == "watched" && change.Value == "1")
	expect("with its version", change.Version.Compare(set.Version) == 0)
	must(a.Set(ctx, "watched", "2"))
	expect("one's own too", next(changes).Value == "2")
	must(b.Del(ctx, "watched"))
	expect("a deletion is told", next(changes).Operation == "DELETE")
	check(a.KeyNotifyStop(ctx, "watched"))
	must(b.Set(ctx, "watched", "3"))
	must(a.Get(ctx, "watched"))
	select {
	case change := <-changes:
		log.Fatalf("told of %v after the end", change)
	default:
	}
}

func expiry(ctx context.Context, a *store) {
	changes, done := a.Notify("brief")
	defer done()
	check(a.KeyNotify(ctx, "brief"))
	must(a.Set(ctx, "brief", "v", statestore.WithExpiry(50*time.Millisecond)))
	expect("a key that expires is set", next(changes).Operation == "SET")
	expect("and deleted", next(changes).Operation == "DELETE")
	expect("and gone", must(a.Get(ctx, "brief")).Version.IsZero())
	check(a.KeyNotifyStop(ctx, "brief"))
}

func fencing(ctx context.Context, a, b *store) {
	older := must(a.Set(ctx, "lock", "a")).Version
	newer := must(b.Set(ctx, "lock", "b")).Version
	must(b.Set(ctx, "fenced", "b", statestore.WithFencingToken(newer)))
	_, err := a.Set(ctx, "fenced", "a", statestore.WithFencingToken(older))
	expectError(err, storeerrors.FencingTokenLowerVersion)
	_, err = a.Set(ctx, "fenced", "a")
	expectError(err, storeerrors.MissingFencingToken)
	_, err = a.Del(ctx, "fenced", statestore.WithFencingToken(older))
	expectError(err, storeerrors.FencingTokenLowerVersion)
	_, err = a.VDel(ctx, "fenced", "b")
	expectError(err, storeerrors.MissingFencingToken)
	expect("its value is untouched", must(a.Get(ctx, "fenced")).Value == "b")
	_, err = a.Set(ctx, "other", "a", statestore.WithFencingToken(ahead()))
	expectError(err, storeerrors.FencingTokenSkew)
	must(b.Del(ctx, "fenced", statestore.WithFencingToken(newer)))
}

// ahead is a token of a clock that is two minutes ahead.
func ahead() hlc.HybridLogicalClock {
	text := fmt.Sprintf("%015d:00000:ahead", time.Now().Add(2*time.Minute).UnixMilli())
	return must(hlc.New().Parse("__ft", text))
}

// locks are made of conditions, expiry, notifications and fencing tokens at once.
func locks(ctx context.Context, a, b *store) {
	mine, theirs := leasedlock.NewLock(a, "leased"), leasedlock.NewLock(b, "leased")
	check(mine.Lock(ctx, generous))
	expect("a lock has a holder", holder(ctx, theirs) == a.ID())
	expect("and nobody else gets it", !must(theirs.Acquire(ctx, generous)))
	locked := make(chan error)
	go func() { locked <- theirs.Lock(ctx, generous) }()
	check(mine.Unlock(ctx))
	check(<-locked)
	expect("the next one has it", holder(ctx, mine) == b.ID())
	token := must(theirs.Token(ctx))
	must(b.Set(ctx, "guarded", "b", statestore.WithFencingToken(token)))
	check(theirs.Unlock(ctx))

	for _, lock := range []leasedlock.Lock[string, string]{mine, theirs} {
		check(lock.Edit(ctx, "edited", generous, func(_ context.Context, value string, _ bool) (string, bool, error) {
			return value + "x", true, nil
		}))
	}
	expect("edits follow each other", must(a.Get(ctx, "edited")).Value == "xx")
}

func holder(ctx context.Context, lock leasedlock.Lock[string, string]) string {
	name, _, err := lock.Holder(ctx)
	check(err)
	return name
}

// commands are requests and responses between two clients, through the broker and past the store.
func commands(ctx context.Context, app *protocol.Application, first, second *mqtt.SessionClient) {
	encoding := protocol.JSON[string]{}
	executor := must(protocol.NewCommandExecutor(app, second, encoding, encoding, "sdk/command/echo",
		func(_ context.Context, request *protocol.CommandRequest[string]) (*protocol.CommandResponse[string], error) {
			return protocol.Respond("echo " + request.Payload)
		},
	))
	check(executor.Start(ctx))
	defer executor.Close()
	invoker := must(protocol.NewCommandInvoker(app, first, encoding, encoding, "sdk/command/echo"))
	check(invoker.Start(ctx))
	defer invoker.Close()
	for index := range 20 {
		request := strconv.Itoa(index)
		response := must(invoker.Invoke(ctx, request, protocol.WithTimeout(generous)))
		expect("a command is answered", response.Payload == "echo "+request)
	}
}

func next(changes <-chan statestore.Notify[string, string]) statestore.Notify[string, string] {
	select {
	case change := <-changes:
		return change
	case <-time.After(generous):
		log.Panic("no notification came in time")
		panic("unreachable")
	}
}

func expect(what string, found bool) {
	if !found {
		log.Panicf("not so: %s", what)
	}
}

func expectError(found error, expected storeerrors.Service) {
	var service storeerrors.Service
	if !errors.As(found, &service) || service != expected {
		log.Panicf("%q expected, %v came", string(expected), found)
	}
}

func check(err error) {
	if err != nil {
		log.Panic(err)
	}
}

func must[T any](value T, err error) T {
	check(err)
	return value
}
