//! The holders of one tenant's model and the forests of what they hold.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use kvproto::hash::llmd::Llmd;
use parking_lot::{Mutex, RwLock};

use crate::announce::Board;
use crate::forest::{Forest, Grown, Guard, Kind, LEAST_GHOSTS, Numbers, Slot, Writer, pin};
use crate::holder::{Desk, Holder};
use crate::profile::Profile;
use crate::types::{HolderId, HolderSpec};

/// The forest of blocks that stand for themselves; all others are one hash domain each.
pub(crate) const CANONICAL: usize = 0;
/// No hash domain.
pub(crate) const NOWHERE: usize = usize::MAX;
/// Hash domains of one pool. Whoever agrees with none of so many has its blocks kept singly.
const MAX_DOMAINS: usize = 1024;
/// Blocks without a holder that are kept, for each holder.
const GHOSTS_PER_HOLDER: usize = 1 << 12;

/// Everything of one (tenant, model).
#[derive(Debug)]
pub(crate) struct Pool {
    /// By slot. A slot is used again when nobody can see its old holder's blocks any more.
    pub members: RwLock<Vec<Option<Arc<Member>>>>,
    /// The members as a query needs them, made anew when they change, which is rare: a query
    /// takes one lock here instead of several for each of them.
    seats: RwLock<Arc<Vec<Seat>>>,
    /// Counts how often the seats were made anew.
    seated: AtomicU64,
    pub forests: Forests,
    /// Bytes of the forests, as the index last counted them.
    pub counted: AtomicU64,
    /// One writer at a time; readers never wait for it.
    pub writing: Mutex<Writing>,
    /// What routing announced.
    pub announced: Arc<Board>,
}

/// The hash domains of a pool.
#[derive(Debug)]
pub(crate) struct Forests {
    all: Grown<OnceLock<Domain>>,
    keyed: bool,
}

/// A forest and how many holders are in it.
type Domain = Box<(Forest, AtomicUsize)>;

/// What only the writer sees.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    pub holders: Vec<Option<Holder>>,
    pub writers: Vec<Writer>,
    next_creator: u32,
    slots: Numbers,
    /// Whether it may be certain of others than readers know whose the names in a domain are.
    stirred: bool,
}

/// One attached holder.
#[derive(Debug)]
pub(crate) struct Member {
    pub id: HolderId,
    pub spec: Arc<HolderSpec>,
    pub slot: u32,
    /// What the events have told so far, for readers.
    pub profile: RwLock<Arc<Profile>>,
    /// Whether it has blocks that are in no forest by their name: who looks for those asks the writer.
    pub odd: AtomicBool,
    /// Its hash domain; [`NOWHERE`] while it is not certain that the names there are its own.
    pub domain: AtomicUsize,
    /// Whether some of what it has was dropped to stay within the budget.
    pub partial: AtomicBool,
    /// Who held this before a loss: what is here is no candidate of its own.
    pub suspect_of: Option<HolderId>,
    /// Whether there is a member of what this one held before a loss.
    pub doubted: AtomicBool,
    /// Whether the holder goes on as another member.
    pub replaced: AtomicBool,
}

/// A member, and what its events have told when the seat was made.
#[derive(Clone, Debug)]
pub(crate) struct Seat {
    pub member: Arc<Member>,
    pub profile: Arc<Profile>,
}

impl Forests {
    fn new(keyed: bool) -> Forests {
        let forests = Forests { all: Grown::new(), keyed };
        for kind in [Kind::Canonical, Kind::Chained] {
            forests.add(kind);
        }
        forests
    }

    fn add(&self, kind: Kind) -> usize {
        let domain = self.all.push(OnceLock::new);
        let forest = || Box::new((Forest::new(kind, self.keyed), AtomicUsize::new(0)));
        self.all.get(domain).expect("just added").get_or_init(forest);
        domain
    }

    /// A domain, unless it is being made just now.
    fn made(&self, domain: usize) -> Option<&Domain> {
        self.all.get(domain).and_then(OnceLock::get)
    }

    fn domain(&self, domain: usize) -> &Domain {
        self.made(domain).expect("whoever has the number got it from a domain that was made")
    }

    pub fn get(&self, domain: usize) -> &Forest {
        &self.domain(domain).0
    }

    /// Every domain but the canonical one.
    pub fn domains(&self) -> impl DoubleEndedIterator<Item = usize> {
        (1..self.all.len()).filter(|d| self.made(*d).is_some())
    }

    /// Every forest that may have blocks, and its number.
    pub fn iter(&self) -> impl Iterator<Item = (usize, &Forest)> {
        (0..self.all.len()).filter_map(|d| Some((d, &self.made(d)?.0)))
    }

    fn members(&self, domain: usize) -> &AtomicUsize {
        &self.domain(domain).1
    }
    pub fn join(&self, domain: usize) {
        self.members(domain).fetch_add(1, Ordering::Relaxed);
    }
    pub fn part(&self, domain: usize) {
        self.members(domain).fetch_sub(1, Ordering::Relaxed);
    }

    /// Engines in a domain.
    pub fn engines(&self, domain: usize) -> usize {
        self.members(domain).load(Ordering::Relaxed)
    }

    /// The domain that most holders are in.
    pub fn busiest(&self) -> usize {
        self.domains().rev().max_by_key(|d| self.members(*d).load(Ordering::Relaxed)).unwrap_or(1)
    }

    /// A domain that nobody is in; a new one if need be.
    pub fn unused(&self) -> Option<usize> {
        self.domains()
            .find(|d| self.engines(*d) == 0)
            .or_else(|| (self.all.len() < MAX_DOMAINS).then(|| self.add(Kind::Chained)))
    }

    /// A domain for blocks that come all at once, of those not `taken`: `wanted` where nobody told
    /// anything there yet, else another of that kind, one that nobody is in, or a new one.
    pub fn unclaimed(&self, wanted: usize, taken: impl Fn(usize) -> bool) -> Option<usize> {
        let untold = |d: &usize| !self.get(*d).is_used() && !taken(*d);
        let empty = |d: &usize| self.members(*d).load(Ordering::Relaxed) == 0 && !taken(*d);
        while self.all.len() <= wanted.min(MAX_DOMAINS - 1) {
            self.add(Kind::Chained);
        }
        self.domains()
            .find(|d| *d == wanted && untold(d))
            .or_else(|| self.domains().find(untold))
            .or_else(|| self.domains().find(empty))
            .or_else(|| (self.all.len() < MAX_DOMAINS).then(|| self.add(Kind::Chained)))
    }

    /// Whether any block that stands for itself is known.
    pub fn has_canonical(&self) -> bool {
        self.get(CANONICAL).is_used()
    }

    /// Domains, but for the canonical one, that anyone is in.
    pub fn used_domains(&self) -> usize {
        self.domains().filter(|d| self.members(*d).load(Ordering::Relaxed) > 0).count()
    }

    pub fn bytes(&self) -> usize {
        self.iter().map(|(_, f)| f.bytes()).sum()
    }
}

impl Pool {
    pub fn new(llmd: bool) -> Pool {
        Pool {
            members: RwLock::default(),
            seats: RwLock::default(),
            seated: AtomicU64::new(0),
            forests: Forests::new(llmd),
            counted: AtomicU64::new(0),
            writing: Mutex::default(),
            announced: Arc::default(),
        }
    }

    /// Changes something as the one writer.
    pub fn write<R>(&self, change: impl FnOnce(&mut Vec<Option<Holder>>, &mut Desk<'_>) -> R) -> R {
        let mut writing = self.writing.lock();
        let guard = pin();
        let done = writing.write(&self.forests, &guard, change);
        if writing.stirred {
            writing.show_all(&self.forests, &guard, &self.members.read());
        }
        done
    }

    /// Adds a holder in the first free slot; in none where there are no more.
    pub fn add(
        &self,
        id: HolderId,
        spec: Arc<HolderSpec>,
        max_blocks: usize,
        llmd: Option<Llmd>,
    ) -> Arc<Member> {
        let mut writing = self.writing.lock();
        let mut members = self.members.write();
        let slot = take_slot(&mut writing, &mut members);
        let member = Arc::new(Member::new(id, spec.clone(), slot));
        members[slot] = Some(member.clone());
        if let Ok(short) = Slot::try_from(slot) {
            let guard = pin();
            writing.write(&self.forests, &guard, |holders, desk| {
                seat(holders, Holder::new(spec, short, max_blocks, llmd, desk));
            });
            writing.show_all(&self.forests, &guard, &members);
        }
        let ghosts = LEAST_GHOSTS.max(members.len() * GHOSTS_PER_HOLDER);
        writing.writers.iter_mut().for_each(|w| w.max_ghosts = ghosts);
        self.reseat(&members);
        member
    }

    /// Leaves what `member` holds to a member of its own that nobody is asked about, and seats the
    /// holder anew with nothing held. Returns the holder's member and the other; `None` without a place
    /// for it.
    pub fn doubt(&self, member: &Member) -> Option<(Arc<Member>, Arc<Member>)> {
        let mut writing = self.writing.lock();
        let mut members = self.members.write();
        let slot = take_slot(&mut writing, &mut members);
        let Ok(short) = Slot::try_from(slot) else {
            writing.slots.give(slot as u32);
            return None;
        };
        let guard = pin();
        writing.write(&self.forests, &guard, |holders, desk| {
            if let Some(Some(old)) = holders.get(member.slot as usize) {
                let fresh = old.successor(short, desk);
                seat(holders, fresh);
            }
        });
        let fresh = Arc::new(Member {
            profile: RwLock::new(member.profile.read().clone()),
            doubted: AtomicBool::new(true),
            domain: AtomicUsize::new(member.domain.load(Ordering::Acquire)),
            ..Member::new(member.id, member.spec.clone(), slot)
        });
        let old = Arc::new(Member {
            profile: RwLock::new(member.profile.read().clone()),
            odd: AtomicBool::new(member.odd.load(Ordering::Acquire)),
            domain: AtomicUsize::new(member.domain.load(Ordering::Acquire)),
            suspect_of: Some(member.id),
            ..Member::new(member.id, member.spec.clone(), member.slot as usize)
        });
        member.replaced.store(true, Ordering::Release);
        members[member.slot as usize] = Some(old.clone());
        members[slot] = Some(fresh.clone());
        self.reseat(&members);
        Some((fresh, old))
    }

    /// Takes a holder and its blocks out. Returns whether the pool is empty now.
    pub fn remove(&self, member: &Member) -> bool {
        let slot = member.slot as usize;
        let mut writing = self.writing.lock();
        let guard = pin();
        writing.write(&self.forests, &guard, |holders, desk| {
            if let Some(mut holder) = holders.get_mut(slot).and_then(Option::take) {
                holder.leave(desk);
            }
        });
        let mut members = self.members.write();
        members[slot] = None;
        let empty = members.iter().all(Option::is_none);
        writing.show_all(&self.forests, &guard, &members);
        self.reseat(&members);
        drop(guard);
        writing.slots.give(slot as u32);
        if empty {
            let guard = pin();
            writing.write(&self.forests, &guard, |_, desk| {
                for (domain, _) in desk.forests.iter() {
                    desk.pen(domain).settle_all();
                }
            });
        }
        empty
    }

    /// The members as they were at one moment.
    pub fn seats(&self) -> Arc<Vec<Seat>> {
        self.seats.read().clone()
    }

    /// A number that changes when the seats do.
    pub fn seated(&self) -> u64 {
        self.seated.load(Ordering::Acquire)
    }

    /// Makes what a holder's events told visible to queries.
    pub fn set_profile(&self, member: &Member, profile: Profile) {
        // The members' lock keeps two who change at once from undoing each other.
        let members = self.members.write();
        *member.profile.write() = Arc::new(profile);
        self.reseat(&members);
    }

    fn reseat(&self, members: &[Option<Arc<Member>>]) {
        let seat = |m: &Arc<Member>| Seat { member: m.clone(), profile: m.profile.read().clone() };
        *self.seats.write() = Arc::new(members.iter().flatten().map(seat).collect());
        self.seated.fetch_add(1, Ordering::Release);
    }
}

impl Member {
    /// Lets readers know what a batch has changed about the holder as a whole.
    pub fn show(&self, holder: &Holder, desk: &mut Desk<'_>) {
        self.odd.store(holder.is_odd(), Ordering::Release);
        self.domain.store(holder.own_domain(desk).unwrap_or(NOWHERE), Ordering::Release);
    }

    fn new(id: HolderId, spec: Arc<HolderSpec>, slot: usize) -> Member {
        Member {
            id,
            spec,
            slot: slot as u32,
            profile: RwLock::default(),
            odd: AtomicBool::new(false),
            domain: AtomicUsize::new(NOWHERE),
            partial: AtomicBool::new(false),
            suspect_of: None,
            doubted: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
        }
    }
}

/// The first free slot.
fn take_slot(writing: &mut Writing, members: &mut Vec<Option<Arc<Member>>>) -> usize {
    writing.slots.take().map_or_else(
        || {
            members.push(None);
            members.len() - 1
        },
        |s| s as usize,
    )
}

/// Puts a holder into its slot.
fn seat(holders: &mut Vec<Option<Holder>>, holder: Holder) {
    let slot = holder.slot() as usize;
    if holders.len() <= slot {
        holders.resize_with(slot + 1, || None);
    }
    holders[slot] = Some(holder);
}

impl Writing {
    pub fn write<R>(
        &mut self,
        forests: &Forests,
        guard: &Guard,
        change: impl FnOnce(&mut Vec<Option<Holder>>, &mut Desk<'_>) -> R,
    ) -> R {
        let Writing { holders, writers, next_creator, stirred, .. } = self;
        change(holders, &mut Desk { forests, writers, guard, next_creator, stirred })
    }

    /// Lets readers know of all `members` what one's change made certain of others.
    fn show_all(&mut self, forests: &Forests, guard: &Guard, members: &[Option<Arc<Member>>]) {
        self.stirred = false;
        self.write(forests, guard, |holders, desk| {
            for member in members.iter().flatten() {
                if let Some(Some(holder)) = holders.get(member.slot as usize) {
                    member.show(holder, desk);
                }
            }
        });
    }
}
