//! A question in numbers: looked up once, so that the search over pairs touches nothing else.

use std::hash::{Hash, Hasher};

use kvproto::Tier;
use rustc_hash::FxHasher;

use super::Knowledge;
use super::policy::Policy;
use crate::transfer::cost::Geometry;
use crate::transfer::cost::book::PodId;
use crate::transfer::types::{Candidate, Connector, Distance, Flow, Place, Question};

/// One pod as the search sees it.
#[derive(Clone, Debug)]
pub(super) struct Seat {
    pub id: PodId,
    /// Equal for pods that understand each other.
    class: u32,
    place: [u64; 4],
    pub prefills: bool,
    pub decodes: bool,
    pub sources: bool,
    /// Tokens of the prompt that this pod's engine need not compute.
    pub hit: u32,
    /// Seconds to bring those of them to the GPU that are in a lower tier.
    pub load_s: f64,
    /// Tokens that others can pull from here, and the tier they are read from.
    pub offer: u32,
    pub tier: Tier,
    /// Seconds until a new prefill begins.
    pub queue_s: f64,
    pub token_s: f64,
    pub overhead_s: f64,
    /// What a second of prefill here costs others.
    pub price: f64,
    /// What decoding here costs others, seconds.
    pub seat_s: f64,
    /// What it costs others that this prompt's tokens are stored here, seconds.
    pub keep_s: f64,
    /// Seconds until there is room to decode here.
    pub room_s: f64,
    pub egress: Flow,
    pub ingress: Flow,
    /// Whether a limit keeps it from prefilling for others, being read from, being written to.
    pub full_prefill: bool,
    pub full_source: bool,
    pub full_destination: bool,
    /// Bytes it may still keep for others.
    pub pin_room: u64,
    /// Whether it has just failed as prefiller or source.
    pub avoided: bool,
}

/// The whole question, in memory that is used again for the next.
#[derive(Default, Debug)]
pub(super) struct Board {
    pub seats: Vec<Seat>,
    /// Bytes under way from `src * n + dst`; empty where nothing is.
    under_way: Vec<u64>,
    pub link_cap: u64,
}

impl Board {
    /// Puts `question` in numbers.
    pub fn set(&mut self, q: &Question, geometry: &Geometry, know: &Knowledge<'_>) {
        self.seats.clear();
        let keep = keep(q, know.policy);
        for (i, pod) in q.pods.iter().enumerate() {
            let class = self.class_of(q, i);
            self.seats.push(seat(q, pod, class, keep, geometry, know));
        }
        for i in &q.avoid {
            if let Some(seat) = self.seats.get_mut(*i) {
                seat.avoided = true;
            }
        }
        let n = self.seats.len();
        self.link_cap = q.caps.bytes_per_link;
        self.under_way.clear();
        if q.links.iter().any(|l| l.2.bytes > 0) {
            self.under_way.resize(n * n, 0);
            for (from, to, flow) in q.links.iter().filter(|l| l.0 < n && l.1 < n) {
                self.under_way[from * n + to] = flow.bytes;
            }
        }
    }

    /// The place of the first pod of the same class; a pod without one is alone.
    fn class_of(&self, q: &Question, i: usize) -> u32 {
        let class = &q.pods[i].class;
        let first = match class {
            Some(_) => q.pods[..i].iter().position(|p| p.class == *class),
            None => None,
        };
        first.map_or(i, |f| self.seats[f].class as usize) as u32
    }

    /// Whether `a` and `b` understand each other's blocks.
    pub fn compatible(&self, a: usize, b: usize) -> bool {
        self.seats[a].class == self.seats[b].class
    }

    /// Whether any two pods understand each other's blocks.
    pub fn any_compatible(&self) -> bool {
        self.seats.iter().enumerate().any(|(i, s)| s.class as usize != i)
    }

    /// How near `a` and `b` are.
    pub fn distance(&self, a: usize, b: usize) -> Distance {
        let (a, b) = (&self.seats[a].place, &self.seats[b].place);
        let same = |i: usize| a[i] != 0 && a[i] == b[i];
        if same(0) {
            Distance::Host
        } else if same(1) {
            Distance::Rack
        } else if same(2) {
            Distance::Zone
        } else if same(3) {
            Distance::Region
        } else {
            Distance::Far
        }
    }

    /// Whether `bytes` more may be under way from `a` to `b`.
    pub fn link_has_room(&self, a: usize, b: usize, bytes: u64) -> bool {
        let under_way = self.under_way.get(a * self.seats.len() + b).copied().unwrap_or(0);
        under_way.saturating_add(bytes) <= self.link_cap
    }
}

fn seat(
    q: &Question,
    pod: &Candidate,
    class: u32,
    keep: f64,
    geometry: &Geometry,
    know: &Knowledge<'_>,
) -> Seat {
    let (book, policy) = (know.book, know.policy);
    let id = PodId::of(&pod.endpoint);
    let cost = book.pod(id, know.now);
    let n = q.prompt_tokens;
    // The last token is always computed.
    let hit = pod.held.cached.min(n.saturating_sub(1));
    let on_gpu = pod.held.gpu.min(hit);
    let (offer, tier) = offer(q.connector, pod);
    // Who reports no tokens may still report requests; take them for prompts like this one.
    let guessed = u64::from(pod.load.waiting_requests) * u64::from(n.min(4096));
    let stated = pod.load.waiting_tokens.max(pod.reserved.prefill_tokens);
    let waiting = if stated > 0 { stated } else { guessed };
    let running = f64::from(pod.load.running_requests);
    let crowd = cost.busy / (1.0 - cost.busy);
    let (caps, r) = (&q.caps, &pod.reserved);
    Seat {
        id,
        class,
        place: place(&pod.place),
        prefills: pod.roles.prefill,
        decodes: pod.roles.decode,
        sources: pod.roles.source && offer > 0,
        hit,
        load_s: geometry.bytes(on_gpu, hit) as f64 / book.load_bytes_per_s(),
        offer: offer.min(n.saturating_sub(1)),
        tier,
        queue_s: waiting as f64 * cost.token_s,
        token_s: cost.token_s,
        overhead_s: cost.overhead_s,
        price: policy.crowd * crowd + policy.stall * running + waiting_for_room(pod, n),
        seat_s: policy.seat.as_secs_f64() * running,
        keep_s: keep * cost.token_s * f64::from(n - hit),
        room_s: room_s(pod, n, policy),
        egress: r.egress,
        ingress: r.ingress,
        full_prefill: r.prefills >= caps.prefills_per_pod,
        full_source: r.egress.transfers >= caps.transfers_per_source,
        full_destination: r.ingress.transfers >= caps.transfers_per_destination,
        pin_room: caps.pinned_bytes_per_pod.saturating_sub(r.pinned_bytes),
        avoided: false,
    }
}

/// Price of storing a token where it is not yet, as part of computing it.
///
/// What it pushes out is likely of the same kind as this prompt: if most of this one is somebody's
/// already, it comes from people who come back, and so will they.
fn keep(q: &Question, policy: &Policy) -> f64 {
    let n = f64::from(q.prompt_tokens.max(1));
    let held = q.pods.iter().map(|p| p.held.cached.max(p.held.cpu_alone)).max().unwrap_or(0);
    let again = (f64::from(held) / n).min(1.0);
    // Odds: how many tokens come again for each that does not.
    if again < 1.0 { (policy.keep * again / (1.0 - again)).min(1.0) } else { 1.0 }
}

/// Seconds until a prompt of `n` tokens finds room: as much is free each second as is held, over
/// how long a request stays.
fn room_s(pod: &Candidate, n: u32, policy: &Policy) -> f64 {
    let room = pod.load.cache_tokens;
    let over = pod.load.committed_tokens.saturating_add(u64::from(n)).saturating_sub(room);
    if room == 0 { 0.0 } else { policy.stay.as_secs_f64() * over as f64 / room as f64 }
}

/// Requests that wait until those that run have left, taken to be as long as this one. A prefill
/// beside those that run holds them all up.
fn waiting_for_room(pod: &Candidate, n: u32) -> f64 {
    let room = pod.load.cache_tokens;
    let over = pod.load.committed_tokens.saturating_sub(room);
    if room == 0 { 0.0 } else { over as f64 / f64::from(n.max(1)) }
}

/// What can be pulled from a pod without a prefill there: what lies in host memory, through vLLM's
/// peer-to-peer tier or by `kv.fetch`. No connector reads another's GPU block by block.
fn offer(connector: Connector, pod: &Candidate) -> (u32, Tier) {
    let by_tier = match connector {
        Connector::NixlPull | Connector::NixlPush | Connector::Mooncake | Connector::Offloading => {
            pod.wire.p2p.is_some()
        }
        Connector::Sglang => false,
    };
    (if by_tier || pod.wire.control.is_some() { pod.held.cpu_alone } else { 0 }, Tier::Cpu)
}

/// Names of places as numbers, 0 where not known. Two names that fall together make a link look
/// nearer than it is, until it is measured.
fn place(place: &Place) -> [u64; 4] {
    [&place.host, &place.rack, &place.zone, &place.region].map(|name| {
        name.as_ref().map_or(0, |name| {
            let mut hasher = FxHasher::default();
            name.hash(&mut hasher);
            hasher.finish() | 1
        })
    })
}
