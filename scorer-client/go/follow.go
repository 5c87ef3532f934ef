package scorer

import (
	"context"
	"net"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/kvd-project/kvd/scorer-client/go/kvpb"
)

const (
	// Of a routing, which nobody waits for.
	unhurried = 100 * time.Millisecond
	// Of a probe.
	probing = 500 * time.Millisecond
	look    = 25 * time.Millisecond
	// The name by which kvd says whether schedulers may ask it.
	service = "kv.v1.IndexService"
)

// follow resolves names again, and tries replicas that fell silent.
func (c *Client) follow() {
	defer c.working.Done()
	tick := time.NewTicker(look)
	defer tick.Stop()
	resolveAt := time.Now().Add(c.config.ResolveEvery)
	for {
		select {
		case <-c.done:
			return
		case now := <-tick.C:
			if now.After(resolveAt) {
				c.resolve()
				resolveAt = now.Add(c.config.ResolveEvery)
			}
			c.mu.Lock()
			for _, r := range c.replicas {
				if r.breaker.wantsProbe(now) && !r.probing {
					r.probing = true
					go c.probe(r)
				}
			}
			c.mu.Unlock()
		}
	}
}

func (c *Client) probe(r *replica) {
	ctx, cancel := context.WithTimeout(context.Background(), probing)
	defer cancel()
	answer, err := r.health.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	c.mu.Lock()
	defer c.mu.Unlock()
	r.probing = false
	if err == nil && answer.Status == grpc_health_v1.HealthCheckResponse_SERVING {
		r.breaker.probed()
	} else {
		r.breaker.failed(time.Now())
	}
}

// resolve looks where the replicas are now. A name that cannot be resolved keeps what it had: a name server that
// fails has not taken the replicas away.
func (c *Client) resolve() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	now := map[string]bool{}
	for _, target := range c.config.Targets {
		host, port, _ := net.SplitHostPort(target)
		if hosts, err := net.DefaultResolver.LookupHost(ctx, host); err == nil {
			c.resolved[target] = nil
			for _, h := range hosts {
				c.resolved[target] = append(c.resolved[target], net.JoinHostPort(h, port))
			}
		}
		for _, address := range c.resolved[target] {
			now[address] = true
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var stay []*replica
	for _, r := range c.replicas {
		if now[r.address] {
			delete(now, r.address)
			stay = append(stay, r)
		} else {
			r.conn.Close()
		}
	}
	for address := range now {
		conn, err := grpc.Dial(address, c.config.DialOptions...)
		if err != nil {
			continue
		}
		stay = append(stay, &replica{
			address: address,
			conn:    conn,
			index:   kvpb.NewIndexServiceClient(conn),
			health:  grpc_health_v1.NewHealthClient(conn),
			breaker: newBreaker(),
		})
	}
	c.replicas = stay
}

// tell tells kvd of routings, one after the other.
func (c *Client) tell() {
	defer c.working.Done()
	for {
		select {
		case <-c.done:
			return
		case call := <-c.routings:
			count := &c.stats.RoutingsFailed
			for i, r := range c.order() {
				if i == 2 {
					break
				}
				ctx, cancel := context.WithTimeout(context.Background(), unhurried)
				_, err := r.index.RecordRouting(ctx, call)
				cancel()
				if err == nil {
					count = &c.stats.RoutingsTold
					break
				}
			}
			atomic.AddUint64(count, 1)
		}
	}
}
