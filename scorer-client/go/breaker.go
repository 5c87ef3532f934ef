package scorer

import "time"

// breaker decides when a replica is left alone, and when it is tried again. Told what happened and when, it reads
// no clock. It opens after most failures without an answer between them; once the pause is over, which doubles with
// every probe that fails, it wants a probe, and one that is answered closes it on probation.
type breaker struct {
	most           int
	first, longest time.Duration

	failures int
	pause    time.Duration
	until    time.Time
	open     bool
}

func newBreaker() breaker {
	return breaker{most: 3, first: 100 * time.Millisecond, longest: 5 * time.Second, pause: 100 * time.Millisecond}
}

func (b *breaker) wantsProbe(now time.Time) bool { return b.open && !now.Before(b.until) }

// answered tells of a question; while the breaker is open it is one that was asked before.
func (b *breaker) answered() {
	if !b.open {
		b.failures, b.pause = 0, b.first
	}
}

// failed tells of a question or a probe.
func (b *breaker) failed(now time.Time) {
	b.failures++
	switch {
	case b.open && !now.Before(b.until):
		b.lengthen()
		b.until = now.Add(b.pause)
	case !b.open && b.failures >= b.most:
		b.open, b.until = true, now.Add(b.pause)
	}
}

// probed tells of a probe that was answered.
func (b *breaker) probed() {
	if b.open {
		b.open, b.failures = false, b.most-1
		b.lengthen()
	}
}

func (b *breaker) lengthen() {
	if b.pause *= 2; b.pause > b.longest {
		b.pause = b.longest
	}
}
