// Package scorer asks kvd how much of a prompt each inference engine already holds.
//
// A Client asks all replicas of kvd as if they were one: every address that a name resolves to is a replica, a
// question goes to one of them, to a second where the first is late, and ends within its budget. A replica that does
// not answer is left alone until it says that it serves. Producer is what a scheduling plugin needs of it.
package scorer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kvd-project/kvd/scorer-client/go/kvpb"
)

// Config says where kvd is and how it is asked. Zero values stand for the defaults in parentheses.
type Config struct {
	// Targets are host:port; a host stands for everything it resolves to, as that of a headless service does.
	Targets []string
	// Budget of a question (5 ms), of which the second replica is asked after HedgeAfter (2 ms).
	Budget, HedgeAfter time.Duration
	// ResolveEvery is how often names are resolved again (5 s).
	ResolveEvery time.Duration
	// RoutingQueue is how many routings may wait to be told (1024); more are dropped and counted.
	RoutingQueue int
	// DialOptions replace an unencrypted connection.
	DialOptions []grpc.DialOption
}

// Stats counts what a client did.
type Stats struct {
	Answered, Hedges, Unanswered                  uint64
	RoutingsTold, RoutingsFailed, RoutingsDropped uint64
	// Silent replicas are left alone now.
	Silent int
}

// ErrNoAnswer says that no replica answered within the budget. A scheduler goes on without kvd.
var ErrNoAnswer = errors.New("no replica of kvd answered in time")

// Client asks the replicas. It may be used by any number of goroutines.
type Client struct {
	config   Config
	stats    Stats
	routings chan *kvpb.RecordRoutingRequest
	done     chan struct{}
	working  sync.WaitGroup

	mu       sync.Mutex
	replicas []*replica
	resolved map[string][]string
	turn     int
}

type replica struct {
	address  string
	conn     *grpc.ClientConn
	index    kvpb.IndexServiceClient
	health   grpc_health_v1.HealthClient
	breaker  breaker
	inFlight int
	probing  bool
}

type outcome struct {
	scores *kvpb.ScoreResponse
	err    error
}

// New begins to look for the replicas. They need not be there yet.
func New(config Config) (*Client, error) {
	if len(config.Targets) == 0 {
		return nil, errors.New("no target")
	}
	for _, target := range config.Targets {
		if _, _, err := net.SplitHostPort(target); err != nil {
			return nil, fmt.Errorf("target %q: %w", target, err)
		}
	}
	defaultTo(&config.Budget, 5*time.Millisecond)
	defaultTo(&config.HedgeAfter, 2*time.Millisecond)
	defaultTo(&config.ResolveEvery, 5*time.Second)
	if config.RoutingQueue <= 0 {
		config.RoutingQueue = 1024
	}
	if config.DialOptions == nil {
		config.DialOptions = []grpc.DialOption{grpc.WithInsecure()}
	}
	c := &Client{
		config:   config,
		routings: make(chan *kvpb.RecordRoutingRequest, config.RoutingQueue),
		done:     make(chan struct{}),
		resolved: map[string][]string{},
	}
	c.resolve()
	c.working.Add(2)
	go c.follow()
	go c.tell()
	return c, nil
}

func defaultTo(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// Close ends what goes on in the background, and the connections.
func (c *Client) Close() {
	close(c.done)
	c.working.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.replicas {
		r.conn.Close()
	}
	c.replicas = nil
}

// Stats of this client so far.
func (c *Client) Stats() Stats {
	silent := 0
	c.mu.Lock()
	for _, r := range c.replicas {
		if r.breaker.open {
			silent++
		}
	}
	c.mu.Unlock()
	return Stats{
		Silent:          silent,
		Answered:        atomic.LoadUint64(&c.stats.Answered),
		Hedges:          atomic.LoadUint64(&c.stats.Hedges),
		Unanswered:      atomic.LoadUint64(&c.stats.Unanswered),
		RoutingsTold:    atomic.LoadUint64(&c.stats.RoutingsTold),
		RoutingsFailed:  atomic.LoadUint64(&c.stats.RoutingsFailed),
		RoutingsDropped: atomic.LoadUint64(&c.stats.RoutingsDropped),
	}
}

// Score asks how much of a prompt every candidate holds. The error is ErrNoAnswer, or what kvd has against the
// question; either way the scheduler goes on without an answer.
func (c *Client) Score(ctx context.Context, request *kvpb.ScoreRequest) (*kvpb.ScoreResponse, error) {
	scores, err := c.score(ctx, request)
	if err != nil {
		atomic.AddUint64(&c.stats.Unanswered, 1)
		return nil, err
	}
	atomic.AddUint64(&c.stats.Answered, 1)
	return scores, nil
}

func (c *Client) score(ctx context.Context, request *kvpb.ScoreRequest) (*kvpb.ScoreResponse, error) {
	left := c.order()
	outcomes := make(chan outcome, len(left))
	open := 0
	askNext := func() {
		if len(left) > 0 {
			c.attempt(left[0], request, outcomes)
			left = left[1:]
			open++
		}
	}
	deadline := time.NewTimer(c.config.Budget)
	defer deadline.Stop()
	hedge := time.NewTimer(c.config.HedgeAfter)
	defer hedge.Stop()
	askNext()
	for open > 0 {
		select {
		case o := <-outcomes:
			if o.err == nil {
				return o.scores, nil
			}
			if aboutTheQuestion(o.err) {
				return nil, o.err
			}
			open--
			askNext()
		case <-hedge.C:
			if len(left) > 0 {
				atomic.AddUint64(&c.stats.Hedges, 1)
				askNext()
			}
		case <-deadline.C:
			return nil, ErrNoAnswer
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, ErrNoAnswer
}

// attempt asks one replica. It has the whole budget whoever answers first, so that it is learnt whether it would have
// answered.
func (c *Client) attempt(r *replica, request *kvpb.ScoreRequest, outcomes chan<- outcome) {
	c.mu.Lock()
	r.inFlight++
	c.mu.Unlock()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), c.config.Budget)
		defer cancel()
		scores, err := r.index.Score(ctx, request)
		c.mu.Lock()
		r.inFlight--
		if err == nil || aboutTheQuestion(err) {
			r.breaker.answered()
		} else {
			r.breaker.failed(time.Now())
		}
		c.mu.Unlock()
		outcomes <- outcome{scores, err}
	}()
}

// aboutTheQuestion says whether it is the question that is wrong, rather than the replica.
func aboutTheQuestion(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange:
		return true
	}
	return false
}

// RecordRouting tells kvd where a request went. It returns at once; false where too many wait already.
func (c *Client) RecordRouting(call *kvpb.RecordRoutingRequest) bool {
	select {
	case c.routings <- call:
		return true
	default:
		atomic.AddUint64(&c.stats.RoutingsDropped, 1)
		return false
	}
}

// order gives the replicas that are not left alone, in turn, the least busy first.
func (c *Client) order() []*replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn++
	var order []*replica
	for i := range c.replicas {
		if r := c.replicas[(i+c.turn)%len(c.replicas)]; !r.breaker.open {
			order = append(order, r)
		}
	}
	busy := make(map[*replica]int, len(order))
	for _, r := range order {
		busy[r] = r.inFlight
	}
	sort.SliceStable(order, func(i, j int) bool { return busy[order[i]] < busy[order[j]] })
	return order
}
