package scorer

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/kvd-project/kvd/scorer-client/go/kvpb"
)

// fake is a replica that answers, or is silent.
type fake struct {
	kvpb.UnimplementedIndexServiceServer
	mu     sync.Mutex
	silent bool
	asked  int
	last   *kvpb.ScoreRequest
	routed []string
}

func (f *fake) Score(ctx context.Context, r *kvpb.ScoreRequest) (*kvpb.ScoreResponse, error) {
	f.mu.Lock()
	f.asked++
	f.last = r
	silent := f.silent
	f.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if r.Model == "nonsense" {
		return nil, status.Error(codes.InvalidArgument, "model: nonsense")
	}
	tokens := uint32(len(r.Prompt.GetTokenIdsLe()) / 4)
	return &kvpb.ScoreResponse{
		TotalBlocks:     tokens / 16,
		BlockSizeTokens: 16,
		Endpoints: []*kvpb.EndpointScore{
			{InstanceId: "a:1", BlockSizeTokens: 16, CachedBlocks: 2, MatchBlocks: 1, MmMatchBlocks: 1,
				ByTier: []*kvpb.TierCount{{Tier: kvpb.Tier_TIER_CPU, Blocks: 2}}},
			{InstanceId: "a:1", DpRank: 1, BlockSizeTokens: 16},
			{InstanceId: "b:1", BlockSizeTokens: 32, SpeculativeBlocks: 3},
		},
	}, nil
}

func (f *fake) RecordRouting(_ context.Context, r *kvpb.RecordRoutingRequest) (*kvpb.RecordRoutingResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.routed = append(f.routed, r.RequestId)
	return &kvpb.RecordRoutingResponse{}, nil
}

func (f *fake) be(silent bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.silent = silent
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func serve(t *testing.T) (*fake, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, server, h := &fake{}, grpc.NewServer(), health.NewServer()
	h.SetServingStatus(service, grpc_health_v1.HealthCheckResponse_SERVING)
	kvpb.RegisterIndexServiceServer(server, f)
	grpc_health_v1.RegisterHealthServer(server, h)
	go server.Serve(listener)
	t.Cleanup(server.Stop)
	return f, listener.Addr().String()
}

func start(t *testing.T, config Config, targets ...string) *Client {
	t.Helper()
	config.Targets = targets
	client, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

func ask(c *Client) error {
	_, err := c.Score(context.Background(), &kvpb.ScoreRequest{Model: "m"})
	return err
}

// until waits for what may take a while on a busy machine.
func until(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for began := time.Now(); !ready(); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal(what)
		}
	}
}

func TestASilentReplicaIsNotNoticedLeftAloneAndAskedAgain(t *testing.T) {
	one, first := serve(t)
	two, second := serve(t)
	client := start(t, Config{Budget: 500 * time.Millisecond, HedgeAfter: 20 * time.Millisecond}, first, second)
	until(t, "both answer", func() bool { return ask(client) == nil && one.count() > 0 && two.count() > 0 })
	one.be(true)
	silent := func() bool { return client.Stats().Silent == 1 }
	until(t, "the silent one is left alone", func() bool {
		if err := ask(client); err != nil {
			t.Fatal(err)
		}
		return silent()
	})
	if client.Stats().Hedges == 0 {
		t.Error("nobody was asked second")
	}
	one.be(false)
	until(t, "it is asked again", func() bool { return !silent() })
	before := one.count()
	until(t, "it answers again", func() bool { return ask(client) == nil && one.count() > before })
}

func TestWithoutAReplicaThereIsNoAnswerInTime(t *testing.T) {
	f, address := serve(t)
	client := start(t, Config{Budget: 50 * time.Millisecond}, address)
	until(t, "it answers", func() bool { return ask(client) == nil })
	f.be(true)
	began := time.Now()
	if err := ask(client); !errors.Is(err, ErrNoAnswer) {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Error(took)
	}
	producer := Producer{Client: client}
	if got := producer.Produce(context.Background(), Request{Model: "m", Prompts: [][]uint32{{1}}}); got != nil {
		t.Error(got)
	}
}

func TestAQuestionThatMakesNoSenseBlamesNobody(t *testing.T) {
	_, address := serve(t)
	client := start(t, Config{Budget: 5 * time.Second}, address)
	for i := 0; i < 5; i++ {
		_, err := client.Score(context.Background(), &kvpb.ScoreRequest{Model: "nonsense"})
		if status.Code(err) != codes.InvalidArgument {
			t.Fatal(err)
		}
	}
	if client.Stats().Silent != 0 {
		t.Error("the replica is left alone")
	}
}

func TestTheProducerSaysWhatPrefixCacheMatchInfoNeeds(t *testing.T) {
	f, address := serve(t)
	client := start(t, Config{Budget: 5 * time.Second}, address)
	producer := Producer{
		Client: client, BlockSizeTokens: 16, MaxPrefixBlocksToMatch: 256, Speculative: true,
		TierWeights: map[string]float64{"cpu": 0.5},
	}
	r := Request{ID: "r", Model: "m", CacheSalt: "s", Prompts: [][]uint32{make([]uint32, 64)}, Candidates: []string{"a:1"}}
	got := producer.Produce(context.Background(), r)
	a, b := got["a:1"], got["b:1"]
	if a.MatchBlocks != 1 || a.TotalBlocks != 4 || a.BlockSizeTokens != 16 || a.CachedBlockCount != 2 ||
		a.CachedBlocksByTier["cpu"] != 2 || a.MMMatchBlocks != 1 {
		t.Error(a)
	}
	if b.TotalBlocks != 2 || b.CachedBlocksByTier["speculative"] != 3 {
		t.Error(b)
	}
	q := f.last
	if q.BlockSize != 16 || q.Options.MaxBlocks != 256 || !q.Options.IncludeSpeculative ||
		q.Options.TierWeights[0].Weight != 0.5 || q.Prompt.CacheSalt != "s" || q.Candidates[0] != "a:1" {
		t.Error(q)
	}
	r.Prompts = append(r.Prompts, make([]uint32, 32))
	if a = producer.Produce(context.Background(), r)["a:1"]; a.TotalBlocks != 6 || a.CachedBlockCount != 4 || a.MMMatchBlocks != 0 {
		t.Error(a)
	}
	producer.PreRequest(r, "a:1", "b:1")
	until(t, "both are told", func() bool { return client.Stats().RoutingsTold == 2 })
	if f.routed[0] != "r" || f.routed[1] != "r#1" {
		t.Error(f.routed)
	}
}

func TestRoutingsAreDroppedWhereTooManyWait(t *testing.T) {
	client := start(t, Config{RoutingQueue: 2}, "127.0.0.1:1")
	dropped := 0
	for i := 0; i < 100; i++ {
		if !client.RecordRouting(&kvpb.RecordRoutingRequest{}) {
			dropped++
		}
	}
	if dropped == 0 || client.Stats().RoutingsDropped != uint64(dropped) {
		t.Error(dropped, client.Stats())
	}
}

func TestABreakerOpensAfterFailuresInARowAndProbesEverMoreSeldom(t *testing.T) {
	now := time.Now()
	after := func(ms int) time.Time { return now.Add(time.Duration(ms) * time.Millisecond) }
	b := newBreaker()
	b.failed(now)
	b.failed(now)
	b.answered()
	b.failed(now)
	b.failed(now)
	if b.open {
		t.Error("an answer between failures counts")
	}
	b.failed(now)
	if !b.open || b.wantsProbe(after(99)) || !b.wantsProbe(after(100)) {
		t.Error(b)
	}
	b.failed(after(100))
	if b.wantsProbe(after(299)) || !b.wantsProbe(after(300)) {
		t.Error(b)
	}
	b.probed()
	b.failed(after(300))
	if !b.open || b.wantsProbe(after(699)) || !b.wantsProbe(after(700)) {
		t.Error(b)
	}
}

func TestWhatIsNoTargetIsRefused(t *testing.T) {
	for _, targets := range [][]string{nil, {"kvd"}, {"a:1", ""}} {
		if _, err := New(Config{Targets: targets}); err == nil {
			t.Error(targets)
		}
	}
}
