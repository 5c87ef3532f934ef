//! Traces from a few rules and a seed, so that no policy is tuned to one recording.

use kvd::ctl::simulate::trace::{Request, Trace};

/// A way to use a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Conversations of a few turns behind a few system prompts; people think for minutes.
    Chat,
    /// Agents that come back every few seconds with a little more, long prompts, many turns.
    Agents,
    /// Long documents that are asked about a few times each, beside prompts that never return.
    Documents,
    /// All of these, and the share of each changes half way.
    Mixed,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Chat, Kind::Agents, Kind::Documents, Kind::Mixed];
}

/// Prompts that each trace has, about.
const REQUESTS: usize = 12_000;
/// ms
const LENGTH: f64 = 3_600_000.0;

struct Maker {
    state: u64,
    blocks: u32,
    requests: Vec<Request>,
    systems: Vec<Vec<u32>>,
}

/// The trace of a kind and a seed.
pub fn make(kind: Kind, seed: u64) -> Trace {
    let mut maker = Maker {
        state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        blocks: 0,
        requests: vec![],
        systems: vec![],
    };
    for blocks in [1, 2, 3, 6, 12, 20] {
        let system = maker.fresh(blocks);
        maker.systems.push(system);
    }
    while maker.requests.len() < REQUESTS {
        let start = maker.uniform() * LENGTH;
        let kind = match kind {
            Kind::Mixed => {
                let chat = if start < LENGTH / 2.0 { 0.7 } else { 0.2 };
                match maker.uniform() {
                    u if u < chat => Kind::Chat,
                    u if u < chat + 0.1 => Kind::Agents,
                    _ => Kind::Documents,
                }
            }
            Kind::Chat | Kind::Agents | Kind::Documents => kind,
        };
        match kind {
            Kind::Chat => maker.session(start, 2.5, (100_000.0, 1.0), 16.0, 4.0),
            Kind::Agents => maker.session(start, 25.0, (6_000.0, 1.2), 30.0, 2.0),
            Kind::Documents | Kind::Mixed => maker.document(start),
        }
    }
    let name = format!("{kind:?} {seed}").to_lowercase();
    Trace::new(name, maker.requests)
}

impl Maker {
    /// A conversation: `turns` on average, `pause` its median (ms) and spread, `first` and `more`
    /// blocks on average.
    fn session(&mut self, start: f64, turns: f64, pause: (f64, f64), first: f64, more: f64) {
        let popular = (self.uniform() * self.uniform() * self.systems.len() as f64) as usize;
        let mut chain = self.systems[popular].clone();
        let blocks = 1 + self.exponential(first) as u32;
        chain.extend(self.fresh(blocks));
        let mut at = start;
        loop {
            self.requests.push(Request { at: at as u64, chain: chain.clone() });
            if self.uniform() < 1.0 / turns || at > LENGTH {
                return;
            }
            at += pause.0 * (pause.1 * self.normal()).exp();
            let blocks = 1 + self.exponential(more) as u32;
            chain.extend(self.fresh(blocks));
        }
    }

    /// A document and questions about it, or a prompt that is never seen again.
    fn document(&mut self, start: f64) {
        let mut chain = self.systems[0].clone();
        let blocks = 10 + self.exponential(40.0) as u32;
        chain.extend(self.fresh(blocks));
        let questions = if self.uniform() < 0.4 { 1 } else { 1 + self.exponential(4.0) as usize };
        let mut at = start;
        for _ in 0..questions {
            let mut asked = chain.clone();
            asked.extend(self.fresh(1));
            self.requests.push(Request { at: at as u64, chain: asked });
            at += self.exponential(240_000.0);
        }
    }

    fn fresh(&mut self, count: u32) -> Vec<u32> {
        self.blocks += count;
        (self.blocks - count..self.blocks).collect()
    }

    fn uniform(&mut self) -> f64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.uniform()).ln()
    }

    fn normal(&mut self) -> f64 {
        let (u, v) = (1.0 - self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}
