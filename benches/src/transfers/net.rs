//! Transfers that share network cards and racks' uplinks evenly.

/// How fast things are, bytes per second.
#[derive(Clone, Copy, Debug)]
pub struct Speeds {
    /// A pod's card, each way.
    pub card: f64,
    /// A rack's way out and in.
    pub uplink: f64,
    /// Pods per rack.
    pub rack: usize,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    id: usize,
    from: usize,
    to: usize,
    left: f64,
    rate: f64,
}

/// Transfers under way.
#[derive(Debug)]
pub struct Net {
    speeds: Speeds,
    flows: Vec<Flow>,
    at: f64,
    /// Counts changes: a wake-up made for an earlier one is void.
    pub version: u64,
    leaving: Vec<u32>,
    coming: Vec<u32>,
    racks_out: Vec<u32>,
    racks_in: Vec<u32>,
}

impl Net {
    pub fn new(speeds: Speeds, pods: usize) -> Net {
        let racks = pods.div_ceil(speeds.rack);
        Net {
            speeds,
            flows: Vec::new(),
            at: 0.0,
            version: 0,
            leaving: vec![0; pods],
            coming: vec![0; pods],
            racks_out: vec![0; racks],
            racks_in: vec![0; racks],
        }
    }

    /// Begins a transfer.
    pub fn begin(&mut self, now: f64, id: usize, from: usize, to: usize, bytes: f64) {
        self.advance(now);
        self.flows.push(Flow { id, from, to, left: bytes.max(1.0), rate: 0.0 });
        self.count(from, to, 1);
        self.share();
    }

    /// The transfers that are through by `now`.
    pub fn ended(&mut self, now: f64) -> Vec<usize> {
        self.advance(now);
        let through: Vec<Flow> = self.flows.iter().filter(|f| f.left <= 1.0).copied().collect();
        self.flows.retain(|f| f.left > 1.0);
        through.iter().for_each(|f| self.count(f.from, f.to, -1));
        self.share();
        through.iter().map(|f| f.id).collect()
    }

    /// When the next one will be through, as things are.
    pub fn next(&self) -> Option<f64> {
        self.flows.iter().map(|f| self.at + f.left / f.rate).min_by(f64::total_cmp)
    }

    fn advance(&mut self, now: f64) {
        let passed = now - self.at;
        self.flows.iter_mut().for_each(|f| f.left -= f.rate * passed);
        self.at = now;
    }

    fn count(&mut self, from: usize, to: usize, by: i32) {
        let add = |n: &mut u32| *n = n.wrapping_add_signed(by);
        add(&mut self.leaving[from]);
        add(&mut self.coming[to]);
        let (a, b) = (from / self.speeds.rack, to / self.speeds.rack);
        if a != b {
            add(&mut self.racks_out[a]);
            add(&mut self.racks_in[b]);
        }
    }

    fn share(&mut self) {
        self.version += 1;
        let s = self.speeds;
        for f in &mut self.flows {
            let (a, b) = (f.from / s.rack, f.to / s.rack);
            let card = s.card / f64::from(self.leaving[f.from].max(self.coming[f.to]));
            f.rate = match a == b {
                true => card,
                false => card.min(s.uplink / f64::from(self.racks_out[a].max(self.racks_in[b]))),
            };
        }
    }
}
