//! A cluster as the planner is told of it, and the costs it begins with.

use std::sync::Arc;
use std::time::Duration;

use kvd::transfer::cost::{CostBook, Geometry, Starting};
use kvd::transfer::plan::{Knowledge, Planner, Policy};
use kvd::transfer::types::{
    Candidate, Caps, Connector, Constraints, Endpoint, Flow, Held, Lesson, Load, Place, Plan, Purpose,
    Question, Reserved, Roles, Wire,
};

pub struct Cluster {
    pub question: Question,
    pub geometry: Option<Geometry>,
    pub starting: Starting,
    pub policy: Policy,
    pub lessons: Vec<Lesson>,
    pub planner: Planner,
}

impl Default for Cluster {
    fn default() -> Self {
        Cluster {
            question: Question {
                purpose: Purpose::PrefillDecode,
                model: "m".into(),
                connector: Connector::NixlPull,
                prompt_tokens: 0,
                pods: Vec::new(),
                decode: None,
                links: Vec::new(),
                caps: Caps::default(),
                constraints: Constraints::default(),
                avoid: Vec::new(),
            },
            geometry: None,
            starting: Starting::default(),
            policy: Policy::default(),
            lessons: Vec::new(),
            planner: Planner::default(),
        }
    }
}

impl Cluster {
    pub fn endpoint(name: &str) -> Endpoint {
        Endpoint { instance: name.into(), rank: 0 }
    }

    pub fn model(&mut self, token_bytes: u64) {
        self.geometry = Some(Geometry::uniform(token_bytes));
    }

    pub fn learn(&mut self, lesson: &Lesson) {
        self.lessons.push(lesson.clone());
    }

    /// What the lessons so far come to.
    pub fn book(&self) -> CostBook {
        let mut book = CostBook::new(self.starting.clone(), 1000, 10_000);
        let parity = self.geometry.as_ref().map_or(1e9, |g| g.attention_parity);
        // Long before the question, so that nobody counts as busy.
        self.lessons.iter().for_each(|l| book.learn(l, parity, Duration::ZERO));
        book
    }

    pub fn plan(&mut self, q: &Question) -> Plan {
        let book = self.book();
        let geometry = self.geometry.as_ref();
        let now = Duration::from_secs(3600);
        self.planner.plan(q, Knowledge { geometry, book: &book, policy: &self.policy, now })
    }

    pub fn place(&self, name: &str) -> Result<usize, String> {
        let at = self.question.pods.iter().position(|p| &*p.endpoint.instance == name);
        at.ok_or_else(|| format!("no pod {name}"))
    }

    pub fn warm(&mut self, from: &str, to: &str) {
        let (from, to) = (Self::endpoint(from), Self::endpoint(to));
        self.learn(&Lesson::Moved { from, to, bytes: 1, took: Duration::from_millis(1), sharing: 1 });
    }

    pub fn warm_all(&mut self) {
        let names: Vec<Arc<str>> = self.question.pods.iter().map(|p| p.endpoint.instance.clone()).collect();
        for from in &names {
            names.iter().filter(|to| *to != from).for_each(|to| self.warm(from, to));
        }
    }

    pub fn cost(&mut self, words: &[&str]) -> Result<(), String> {
        for word in words {
            let (key, value) = word.split_once('=').ok_or("what does it cost?")?;
            let seconds =
                || humantime::parse_duration(value).map(|d| d.as_secs_f64()).map_err(|e| e.to_string());
            match key {
                "token" => self.starting.token_s = seconds()?,
                "handshake" => self.starting.handshake_s = seconds()?,
                "failures" => self.starting.failures = value.parse().map_err(|_| "a share")?,
                _ => return Err(format!("{key}?")),
            }
        }
        Ok(())
    }

    pub fn caps(&mut self, words: &[&str]) -> Result<(), String> {
        for word in words {
            let (key, value) = word.split_once('=').ok_or("what limit?")?;
            let caps = &mut self.question.caps;
            match key {
                "source" => caps.transfers_per_source = bytes(value)? as u32,
                "destination" => caps.transfers_per_destination = bytes(value)? as u32,
                "link" => caps.bytes_per_link = bytes(value)?,
                "pinned" => caps.pinned_bytes_per_pod = bytes(value)?,
                "prefills" => caps.prefills_per_pod = bytes(value)? as u32,
                _ => return Err(format!("{key}?")),
            }
        }
        Ok(())
    }

    /// Describes a pod, anew or in place of what was said of it.
    pub fn pod(&mut self, name: &str, words: &[&str]) -> Result<(), String> {
        let mut pod = plain(name);
        let any = Roles { prefill: false, decode: false, source: false };
        let mut roles = any;
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let n = || bytes(value);
            match key {
                "prefill" => roles.prefill = true,
                "decode" => roles.decode = true,
                "source" => roles.source = true,
                "held" => (pod.held.gpu, pod.held.cached) = (n()? as u32, n()? as u32),
                "cpu" => pod.held.cpu_alone = n()? as u32,
                "cached" => pod.held.cached = n()? as u32,
                "waiting" => pod.load.waiting_tokens = n()?,
                "waiting_requests" => pod.load.waiting_requests = n()? as u32,
                "room" => pod.load.cache_tokens = n()?,
                "committed" => pod.load.committed_tokens = n()?,
                "running" => pod.load.running_requests = n()? as u32,
                "class" => pod.class = Some(value.into()),
                "noclass" => pod.class = None,
                "rack" => pod.place.rack = Some(value.into()),
                "host" => pod.place.host = Some(value.into()),
                "egress" => pod.reserved.egress = flow(value)?,
                "ingress" => pod.reserved.ingress = flow(value)?,
                "pinned" => pod.reserved.pinned_bytes = n()?,
                "prefills" => pod.reserved.prefills = n()? as u32,
                "nop2p" => pod.wire.p2p = None,
                _ => return Err(format!("{key}?")),
            }
        }
        if roles != any {
            pod.roles = roles;
        }
        match self.place(name) {
            Ok(at) => self.question.pods[at] = pod,
            Err(_) => self.question.pods.push(pod),
        }
        Ok(())
    }
}

/// A pod that may do everything and has nothing.
pub fn plain(name: &str) -> Candidate {
    Candidate {
        endpoint: Cluster::endpoint(name),
        roles: Roles { prefill: true, decode: true, source: true },
        class: Some("a".into()),
        place: Place { rack: Some("r".into()), ..Place::default() },
        wire: Wire { p2p: Some(format!("{name}:5710").into()), ..Wire::default() },
        held: Held { fresh: true, ..Held::default() },
        block_size: 16,
        load: Load::default(),
        reserved: Reserved::default(),
    }
}

fn flow(text: &str) -> Result<Flow, String> {
    let (transfers, size) = text.split_once('x').ok_or("a flow is NxBYTES")?;
    let transfers = transfers.parse().map_err(|_| "how many transfers?")?;
    Ok(Flow { transfers, bytes: u64::from(transfers) * bytes(size)? })
}

/// `12`, `64KiB`, `1GB`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        other => return Err(format!("{other}?")),
    };
    text[..digits].parse::<u64>().map(|n| n * unit).map_err(|_| format!("{text} is no number"))
}
