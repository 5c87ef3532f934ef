package scorer

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/kvd-project/kvd/scorer-client/go/kvpb"
)

// MatchInfo is what llm-d's PrefixCacheMatchInfo says of one endpoint, in blocks of BlockSizeTokens.
type MatchInfo struct {
	MatchBlocks, TotalBlocks, BlockSizeTokens, CachedBlockCount int
	// CachedBlocksByTier has the contiguous blocks within each tier alone, and under "speculative" those of requests
	// that were routed there.
	CachedBlocksByTier map[string]int
	MMMatchBlocks      int
}

// Request is what a producer is asked about.
type Request struct {
	ID, Model, LoRA, CacheSalt string
	// Prompts in token ids; several of a request are looked up one by one and summed up.
	Prompts [][]uint32
	// Candidates as address:port.
	Candidates []string
}

// Producer answers for the DataProducer of an endpoint picker: one call to kvd per prompt, never an error.
type Producer struct {
	Client *Client
	// BlockSizeTokens, TierWeights and MaxPrefixBlocksToMatch are the picker's own settings; zero = kvd's.
	BlockSizeTokens        int
	MaxPrefixBlocksToMatch int
	TierWeights            map[string]float64
	// Speculative counts blocks of requests that were routed and are not there yet, for SpeculativeTTL.
	Speculative    bool
	SpeculativeTTL time.Duration
}

// Tiers by the names that llm-d's configuration has for them.
var tiers = map[string]kvpb.Tier{
	"gpu": kvpb.Tier_TIER_GPU, "cpu": kvpb.Tier_TIER_CPU, "disk": kvpb.Tier_TIER_DISK,
	"shared_storage": kvpb.Tier_TIER_SHARED, "object_store": kvpb.Tier_TIER_SHARED,
}

// The names that llm-d has for tiers.
var tierNames = map[kvpb.Tier]string{
	kvpb.Tier_TIER_GPU: "gpu", kvpb.Tier_TIER_CPU: "cpu", kvpb.Tier_TIER_DISK: "disk",
	kvpb.Tier_TIER_SHARED: "shared_storage", kvpb.Tier_TIER_UNKNOWN: "unknown",
}

// Produce says what each candidate holds, by address:port. Nil where kvd did not answer in time: the picker then
// scores every endpoint 0, and load decides.
func (p *Producer) Produce(ctx context.Context, r Request) map[string]MatchInfo {
	sum := map[string]MatchInfo{}
	for _, prompt := range r.Prompts {
		scores, err := p.Client.Score(ctx, p.scoreRequest(r, prompt))
		if err != nil {
			return nil
		}
		for instance, info := range best(scores) {
			sum[instance] = sum[instance].plus(info)
		}
	}
	if len(r.Prompts) > 1 {
		for instance, info := range sum {
			// Multimodal blocks are said of single prompts only.
			info.MMMatchBlocks = 0
			sum[instance] = info
		}
	}
	return sum
}

// PreRequest tells kvd where a request went: its decode endpoint, and its prefill endpoint if it has one. It returns
// at once.
func (p *Producer) PreRequest(r Request, endpoints ...string) {
	for i, prompt := range r.Prompts {
		call := &kvpb.RecordRoutingRequest{
			RequestId: promptID(r.ID, i),
			Model:     r.Model,
			Prompt:    prompted(r, prompt),
			TtlMs:     uint32(p.SpeculativeTTL.Milliseconds()),
		}
		for _, e := range endpoints {
			call.Endpoints = append(call.Endpoints, &kvpb.RoutedEndpoint{InstanceId: e})
		}
		p.Client.RecordRouting(call)
	}
}

func (p *Producer) scoreRequest(r Request, prompt []uint32) *kvpb.ScoreRequest {
	options := &kvpb.ScoreOptions{
		MaxBlocks:          uint32(p.MaxPrefixBlocksToMatch),
		IncludeSpeculative: p.Speculative,
	}
	for name, weight := range p.TierWeights {
		if tier, ok := tiers[name]; ok {
			options.TierWeights = append(options.TierWeights, &kvpb.TierWeight{Tier: tier, Weight: weight})
		}
	}
	return &kvpb.ScoreRequest{
		RequestId:  r.ID,
		Model:      r.Model,
		Prompt:     prompted(r, prompt),
		Candidates: r.Candidates,
		BlockSize:  uint32(p.BlockSizeTokens),
		Options:    options,
	}
}

func prompted(r Request, prompt []uint32) *kvpb.Prompt {
	tokens := make([]byte, 4*len(prompt))
	for i, token := range prompt {
		binary.LittleEndian.PutUint32(tokens[4*i:], token)
	}
	return &kvpb.Prompt{Key: &kvpb.Prompt_TokenIdsLe{TokenIdsLe: tokens}, LoraName: r.LoRA, CacheSalt: r.CacheSalt}
}

// promptID names one prompt of a request that has several.
func promptID(id string, i int) string {
	if i == 0 {
		return id
	}
	return fmt.Sprintf("%s#%d", id, i)
}

// best has the rank of each instance that holds most.
func best(scores *kvpb.ScoreResponse) map[string]MatchInfo {
	best := map[string]MatchInfo{}
	for _, e := range scores.Endpoints {
		info := matchInfo(scores, e)
		if known, ok := best[e.InstanceId]; !ok || info.CachedBlockCount > known.CachedBlockCount {
			best[e.InstanceId] = info
		}
	}
	return best
}

func matchInfo(scores *kvpb.ScoreResponse, e *kvpb.EndpointScore) MatchInfo {
	info := MatchInfo{
		MatchBlocks:        int(e.MatchBlocks),
		BlockSizeTokens:    int(e.BlockSizeTokens),
		CachedBlockCount:   int(e.CachedBlocks),
		CachedBlocksByTier: map[string]int{},
		MMMatchBlocks:      int(e.MmMatchBlocks),
	}
	if info.BlockSizeTokens > 0 {
		info.TotalBlocks = int(scores.TotalBlocks) * int(scores.BlockSizeTokens) / info.BlockSizeTokens
	}
	for _, t := range e.ByTier {
		info.CachedBlocksByTier[tierNames[t.Tier]] += int(t.Blocks)
	}
	if e.SpeculativeBlocks > 0 {
		info.CachedBlocksByTier["speculative"] = int(e.SpeculativeBlocks)
	}
	return info
}

// plus sums up over prompts.
func (m MatchInfo) plus(other MatchInfo) MatchInfo {
	sum := MatchInfo{
		MatchBlocks:        m.MatchBlocks + other.MatchBlocks,
		TotalBlocks:        m.TotalBlocks + other.TotalBlocks,
		BlockSizeTokens:    other.BlockSizeTokens,
		CachedBlockCount:   m.CachedBlockCount + other.CachedBlockCount,
		MMMatchBlocks:      m.MMMatchBlocks + other.MMMatchBlocks,
		CachedBlocksByTier: map[string]int{},
	}
	for _, by := range []map[string]int{m.CachedBlocksByTier, other.CachedBlocksByTier} {
		for tier, blocks := range by {
			sum.CachedBlocksByTier[tier] += blocks
		}
	}
	return sum
}
