//! Which beginnings do many prompts have in common?
//!
//! A radix tree of the prompts asked about lately: an edge is a stretch that all prompts below it
//! share, and it forks where they part, so that a system prompt or a shared document is one node however
//! long it is. Weights fade by half every [`HALF_LIFE`]. The tree is bounded; over the bound the lightest
//! leaf goes, so that what is asked once makes room for what is asked again, and a weight may be too
//! small, never too large.
//!
//! Why not count in the index? Its strands part where *engines* stored differently and say nothing of how
//! often they are asked for; a counter in each would cost every query a shared write. Here a query costs
//! nothing unless it is one of the few that are looked at ([`super::Traffic`]).

use kvindex::HolderId;
use rustc_hash::FxHashMap;

use super::path::{Path, Root};

/// Seconds in which a weight fades by half.
pub const HALF_LIFE: f64 = 300.0;
/// Holders of one node that are remembered by name.
pub const MAX_NAMED: usize = 64;

/// How large a tree may become.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Nodes.
    pub nodes: usize,
    /// Pieces of all nodes together, 4 bytes each.
    pub pieces: usize,
    /// Different roots: tenant, model and adapter.
    pub roots: usize,
}

impl Default for Bounds {
    /// At most about 3 MiB.
    fn default() -> Self {
        Bounds { nodes: 4096, pieces: 1 << 19, roots: 64 }
    }
}

/// The tree, or rather one per root.
#[derive(Debug, Default)]
pub struct Tree {
    bounds: Bounds,
    roots: Vec<Grove>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Pieces of all nodes.
    pieces: usize,
}

/// What hangs on one root.
#[derive(Debug)]
struct Grove {
    root: Root,
    weight: Fading,
    children: Children,
}

type Children = FxHashMap<u32, u32>;

#[derive(Debug, Default)]
struct Node {
    pieces: Vec<u32>,
    /// Tokens up to the end of this node.
    end: u64,
    weight: Fading,
    /// Prompts looked at that came through here.
    seen: u64,
    /// The node before it; `None` at the root.
    up: Option<u32>,
    children: Children,
    held: Held,
    live: bool,
}

/// Who has all of a prefix, as the last answer about it said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// How many.
    pub by: usize,
    /// How many were asked about.
    pub of: usize,
    /// Some of them, at most `MAX_NAMED`.
    pub named: Vec<HolderId>,
}

/// A weight that fades with time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fading {
    weight: f64,
    /// When it was that, in seconds.
    at: f64,
}

impl Fading {
    /// What is left of it at `now`.
    pub fn at(self, now: f64) -> f64 {
        self.weight * (-(now - self.at).max(0.0) / HALF_LIFE).exp2()
    }

    /// Adds to it.
    pub fn add(&mut self, more: f64, now: f64) {
        *self = Fading { weight: self.at(now) + more, at: now };
    }
}

/// A prefix that prompts share.
#[derive(Clone, Debug)]
pub struct Prefix {
    /// Its number in the answer, from 0; parents come first.
    pub parent: Option<usize>,
    /// Which prompts: tenant, model, adapter.
    pub root: usize,
    /// Names it, as long as the tree knows it.
    pub id: u64,
    /// The token it begins after, and ends before.
    pub tokens: (u64, u64),
    /// Its part of all prompts of the root, 0 to 1.
    pub share: f64,
    /// Its weight: prompts, faded.
    pub weight: f64,
    /// Who holds all of it.
    pub held: Held,
}

impl Tree {
    /// An empty tree.
    pub fn new(bounds: Bounds) -> Tree {
        Tree { bounds, ..Tree::default() }
    }

    /// Notes a prompt that stands for `weight` of them, and who has how many of its tokens (by tokens,
    /// most first) of `of` asked about.
    pub fn note(&mut self, path: &Path, weight: f64, held: &[(HolderId, u64)], now: f64) {
        let Some(root) = self.root(&path.root, now) else { return };
        self.roots[root].weight.add(weight, now);
        let mut at: Option<u32> = None;
        let mut done = 0;
        while let Some(&first) = path.pieces.get(done) {
            let rest = &path.pieces[done..];
            let next = self.children(root, at).get(&first).copied();
            let node = match next {
                None => {
                    let node = self.add(rest.to_vec(), path.end(path.pieces.len()), at);
                    self.children_mut(root, at).insert(first, node);
                    node
                }
                Some(node) => {
                    let pieces = &self.nodes[node as usize].pieces;
                    let common = pieces.iter().zip(rest).take_while(|(a, b)| a == b).count();
                    match common < pieces.len() {
                        true => self.fork(root, at, node, common, path.end(done + common), now),
                        false => node,
                    }
                }
            };
            done += self.nodes[node as usize].pieces.len();
            let n = &mut self.nodes[node as usize];
            n.weight.add(weight, now);
            n.seen += 1;
            n.held = who_holds(held, n.end);
            at = Some(node);
        }
        self.keep_within_bounds(now);
    }

    /// The heaviest prefixes that were seen more than once, at most `limit`, parents before children.
    pub fn hottest(&self, limit: usize, now: f64) -> (Vec<Root>, Vec<Prefix>) {
        let mut roots = Vec::new();
        let mut all: Vec<(f64, usize, Option<u32>, u32, u64, u64)> = Vec::new();
        for (g, grove) in self.roots.iter().enumerate() {
            roots.push(grove.root.clone());
            let mut todo: Vec<(Option<u32>, u32, u64, u64)> =
                grove.children.values().map(|&n| (None, n, 0, g as u64 + 1)).collect();
            while let Some((parent, node, begin, name)) = todo.pop() {
                let n = &self.nodes[node as usize];
                if n.seen < 2 {
                    continue;
                }
                let id = n.pieces.iter().fold(name, |h, p| mix(h ^ u64::from(*p)));
                all.push((n.weight.at(now), g, parent, node, begin, id));
                todo.extend(n.children.values().map(|&c| (Some(node), c, n.end, id)));
            }
        }
        // A parent weighs at least as much as each child, so the heaviest come with their parents;
        // where they weigh the same, the one that begins first is the parent.
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.4.cmp(&b.4)));
        all.truncate(limit);
        let mut number: FxHashMap<u32, usize> = FxHashMap::default();
        let mut out = Vec::with_capacity(all.len());
        for (weight, root, parent, node, begin, id) in all {
            let parent = match parent {
                None => None,
                Some(p) => match number.get(&p) {
                    Some(at) => Some(*at),
                    // Rounding made a child heavier than its parent, which is cut off: so is it.
                    None => continue,
                },
            };
            let n = &self.nodes[node as usize];
            let whole = self.roots[root].weight.at(now).max(f64::MIN_POSITIVE);
            number.insert(node, out.len());
            out.push(Prefix {
                parent,
                root,
                id,
                tokens: (begin, n.end),
                share: (weight / whole).min(1.0),
                weight,
                held: n.held.clone(),
            });
        }
        (roots, out)
    }

    /// Nodes and pieces there are.
    pub fn size(&self) -> (usize, usize) {
        (self.nodes.len() - self.free.len(), self.pieces)
    }

    /// The place of `root`; `None` where there are as many as there may be, all in use.
    fn root(&mut self, root: &Root, now: f64) -> Option<usize> {
        if let Some(at) = self.roots.iter().position(|g| g.root == *root) {
            return Some(at);
        }
        if self.roots.len() >= self.bounds.roots {
            let empty = self.roots.iter().position(|g| g.children.is_empty() || g.weight.at(now) < 0.5)?;
            let gone: Vec<u32> = self.roots[empty].children.values().copied().collect();
            gone.into_iter().for_each(|n| self.remove_all(n));
            self.roots.swap_remove(empty);
        }
        let grove = Grove { root: root.clone(), weight: Fading::default(), children: Children::default() };
        self.roots.push(grove);
        Some(self.roots.len() - 1)
    }

    fn children(&self, root: usize, at: Option<u32>) -> &Children {
        at.map_or(&self.roots[root].children, |n| &self.nodes[n as usize].children)
    }

    fn children_mut(&mut self, root: usize, at: Option<u32>) -> &mut Children {
        match at {
            None => &mut self.roots[root].children,
            Some(n) => &mut self.nodes[n as usize].children,
        }
    }

    fn add(&mut self, pieces: Vec<u32>, end: u64, up: Option<u32>) -> u32 {
        self.pieces += pieces.len();
        let node = Node { pieces, end, up, live: true, ..Node::default() };
        match self.free.pop() {
            Some(n) => {
                self.nodes[n as usize] = node;
                n
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        }
    }

    /// Parts `node` after its first `common` pieces; returns the part before.
    fn fork(&mut self, root: usize, at: Option<u32>, node: u32, common: usize, end: u64, now: f64) -> u32 {
        let n = &mut self.nodes[node as usize];
        let after = n.pieces.split_off(common);
        let before = std::mem::replace(&mut n.pieces, after);
        let (second, weight, seen, held) = (n.pieces[0], n.weight.at(now), n.seen, n.held.clone());
        self.pieces -= before.len();
        let first = before[0];
        let stem = self.add(before, end, at);
        self.nodes[node as usize].up = Some(stem);
        let s = &mut self.nodes[stem as usize];
        s.weight.add(weight, now);
        s.seen = seen;
        s.held = held;
        s.children.insert(second, node);
        self.children_mut(root, at).insert(first, stem);
        stem
    }

    /// Removes the lightest leaves until the tree is as small as it must be.
    fn keep_within_bounds(&mut self, now: f64) {
        // Several at once, because each look goes over all nodes.
        while self.pieces > self.bounds.pieces || self.nodes.len() - self.free.len() > self.bounds.nodes {
            let mut leaves: Vec<(f64, u32)> = (0u32..)
                .zip(&self.nodes)
                .filter(|(_, n)| n.live && n.children.is_empty())
                .map(|(i, n)| (n.weight.at(now), i))
                .collect();
            let some = (leaves.len() / 16).clamp(1, leaves.len().max(1));
            leaves.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
            for (_, leaf) in leaves.into_iter().take(some) {
                self.unlink(leaf);
                self.remove_all(leaf);
            }
        }
    }

    fn unlink(&mut self, node: u32) {
        let n = &self.nodes[node as usize];
        let (first, up) = (n.pieces[0], n.up);
        match up {
            Some(up) => {
                self.nodes[up as usize].children.remove(&first);
            }
            None => {
                let children = self.roots.iter_mut().map(|g| &mut g.children);
                children.filter(|c| c.get(&first) == Some(&node)).for_each(|c| {
                    c.remove(&first);
                });
            }
        }
    }

    fn remove_all(&mut self, node: u32) {
        let mut todo = vec![node];
        while let Some(n) = todo.pop() {
            let gone = std::mem::take(&mut self.nodes[n as usize]);
            self.pieces -= gone.pieces.len();
            todo.extend(gone.children.values());
            self.free.push(n);
        }
    }
}

fn who_holds(held: &[(HolderId, u64)], end: u64) -> Held {
    let by = held.partition_point(|(_, tokens)| *tokens >= end);
    Held { by, of: held.len(), named: held[..by.min(MAX_NAMED)].iter().map(|(id, _)| *id).collect() }
}

/// Spreads a hash (the finaliser of SplitMix64).
fn mix(h: u64) -> u64 {
    let h = (h ^ h >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let h = (h ^ h >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    h ^ h >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(pieces: &[u32]) -> Path {
        let root = Root { tenant: "t".into(), model: "m".into(), adapter: None };
        Path { root, pieces: pieces.to_vec(), step: 10 }
    }

    fn ids(n: u32) -> Vec<(HolderId, u64)> {
        (0..n).map(|i| (HolderId(i), u64::from(100 - i * 10))).collect()
    }

    /// (tokens from, to, weight rounded, parent)
    fn shown(tree: &Tree, now: f64) -> Vec<(u64, u64, u64, Option<usize>)> {
        let (_, all) = tree.hottest(64, now);
        all.iter().map(|p| (p.tokens.0, p.tokens.1, p.weight.round() as u64, p.parent)).collect()
    }

    #[test]
    fn a_shared_beginning_is_one_node_and_forks_where_prompts_part() {
        let mut tree = Tree::new(Bounds::default());
        for tail in [7, 8, 7] {
            tree.note(&path(&[1, 2, 3, tail]), 1.0, &[], 0.0);
        }
        assert_eq!(shown(&tree, 0.0), [(0, 30, 3, None), (30, 40, 2, Some(0))]);
        tree.note(&path(&[1, 9]), 1.0, &[], 0.0);
        assert_eq!(shown(&tree, 0.0), [(0, 10, 4, None), (10, 30, 3, Some(0)), (30, 40, 2, Some(1))]);
        assert_eq!(tree.size(), (5, 6), "1, 2-3, 7, 8 and 9");
    }

    #[test]
    fn a_prompt_that_ends_within_another_forks_it_too() {
        let mut tree = Tree::new(Bounds::default());
        tree.note(&path(&[1, 2, 3]), 1.0, &[], 0.0);
        tree.note(&path(&[1, 2]), 1.0, &[], 0.0);
        assert_eq!(shown(&tree, 0.0), [(0, 20, 2, None)]);
    }

    #[test]
    fn weights_fade_by_half() {
        let mut tree = Tree::new(Bounds::default());
        (0..8).for_each(|_| tree.note(&path(&[1]), 1.0, &[], 0.0));
        assert_eq!(shown(&tree, HALF_LIFE), [(0, 10, 4, None)]);
        tree.note(&path(&[2]), 4.0, &[], HALF_LIFE);
        tree.note(&path(&[2]), 4.0, &[], HALF_LIFE);
        assert_eq!(shown(&tree, HALF_LIFE), [(0, 10, 8, None), (0, 10, 4, None)]);
    }

    #[test]
    fn who_holds_a_prefix_is_who_has_tokens_up_to_its_end() {
        let mut tree = Tree::new(Bounds::default());
        tree.note(&path(&[1, 2]), 1.0, &[], 0.0);
        // 100, 90, ... 20 tokens: all have the first 20, seven of nine the first 40.
        tree.note(&path(&[1, 2, 3, 4]), 1.0, &ids(9), 0.0);
        tree.note(&path(&[1, 2, 3, 4]), 1.0, &ids(9), 0.0);
        let (_, all) = tree.hottest(9, 0.0);
        assert_eq!((all[0].held.by, all[0].held.of), (9, 9));
        assert_eq!((all[1].held.by, all[1].tokens), (7, (20, 40)));
        assert_eq!(all[1].held.named, (0..7).map(HolderId).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_asked_again_stays_and_what_is_asked_once_goes() {
        let bounds = Bounds { nodes: 64, pieces: 400, roots: 2 };
        let mut tree = Tree::new(bounds);
        for i in 0..10_000 {
            let now = f64::from(i) * 0.01;
            // Every fifth prompt begins like the others of its kind.
            let prompt = if i % 5 == 0 { [1, 2, 3, 1000 + i as u32] } else { [i as u32 + 5, 1, 1, 1] };
            tree.note(&path(&prompt), 1.0, &[], now);
            let (nodes, pieces) = tree.size();
            assert!(nodes <= bounds.nodes && pieces <= bounds.pieces, "{nodes} {pieces}");
        }
        let (_, all) = tree.hottest(8, 100.0);
        assert_eq!(all[0].tokens, (0, 30));
        assert!((all[0].share - 0.2).abs() < 0.02, "{}", all[0].share);
        assert_eq!(tree.nodes.iter().filter(|n| n.live).count(), tree.size().0);
        assert_eq!(tree.nodes.iter().map(|n| n.pieces.len()).sum::<usize>(), tree.size().1);
    }

    #[test]
    fn another_model_has_a_tree_of_its_own_and_old_ones_make_room() {
        let mut tree = Tree::new(Bounds { roots: 2, ..Bounds::default() });
        let of = |model: &str| Path { root: Root { model: model.into(), ..path(&[]).root }, ..path(&[1, 2]) };
        for model in ["a", "b", "a", "b"] {
            tree.note(&of(model), 1.0, &[], 0.0);
        }
        assert_eq!(shown(&tree, 0.0), [(0, 20, 2, None), (0, 20, 2, None)]);
        tree.note(&of("c"), 1.0, &[], 0.0);
        assert_eq!(tree.size(), (2, 4), "there is no room for c");
        let late = 20.0 * HALF_LIFE;
        tree.note(&of("c"), 1.0, &[], late);
        tree.note(&of("c"), 1.0, &[], late);
        let (roots, all) = tree.hottest(9, late);
        assert!(roots.iter().any(|r| r.model == "c"), "one of the others made room");
        assert_eq!(all[0].weight.round(), 2.0);
    }
}
