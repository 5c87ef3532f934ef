//! How many tokens an engine itself would report as cached, from what it holds.
//!
//! The engine looks for the largest prefix that every KV-cache group can serve: a
//! full-attention group needs every block, a window group only the last window, a Mamba
//! group only the state at the end, chunked local attention only the chunk that the end
//! lies in. Groups shorten each other's answer until none does (a fixed point). The last
//! prompt token is always computed. An offload tier then continues the device prefix by
//! whole chunks, and may cover the last token.

use kvproto::{GroupKind, Tier};
use smallvec::SmallVec;

use crate::profile::{Mask, Profile};
use crate::runs::Runs;

/// What must be known of a prompt and its engine to count as the engine does.
pub(crate) struct Hit<'a> {
    pub runs: &'a Runs,
    pub profile: &'a Profile,
    /// Tokens per block of `runs`.
    pub block_size: u32,
    pub prompt_tokens: u64,
    pub attention_chunk: Option<u32>,
    /// Blocks per offload chunk.
    pub offload_chunk: u32,
}

/// Groups that attend alike share one answer.
struct Attention {
    kind: GroupKind,
    window: Option<u32>,
    /// Tokens per block of the groups, a multiple of the prompt's block size.
    block_size: u32,
    mask: Mask,
}

impl Hit<'_> {
    /// Tokens that the engine would count as cached. `step` is told how it came about.
    pub fn tokens(&self, step: &mut impl FnMut(std::fmt::Arguments<'_>)) -> u64 {
        if self.block_size == 0 || self.prompt_tokens == 0 {
            return 0;
        }
        let device = self.device(step);
        let total = self.offload(device);
        if total > device {
            step(format_args!(
                "a lower tier continues it by whole chunks of {} blocks to {total} tokens",
                self.offload_chunk
            ));
        }
        total
    }

    fn device(&self, step: &mut impl FnMut(std::fmt::Arguments<'_>)) -> u64 {
        let attentions = self.attentions();
        let mut length = self.prompt_tokens - 1;
        step(format_args!(
            "the last of {} prompt tokens is always computed: {length} left",
            self.prompt_tokens
        ));
        loop {
            let mut now = length;
            for a in &attentions {
                let before = now;
                now = self.served(a, now);
                if now != before {
                    step(format_args!(
                        "{} groups with blocks of {} serve {now} of {before} tokens",
                        name(a.kind),
                        a.block_size
                    ));
                }
            }
            if now >= length || attentions.len() <= 1 {
                return now;
            }
            length = now;
        }
    }

    /// Groups by how they attend, those that need every block first.
    fn attentions(&self) -> SmallVec<[Attention; 4]> {
        let mut out: SmallVec<[Attention; 4]> = SmallVec::new();
        for (g, group) in self.profile.groups.iter().enumerate() {
            let Some(group) = group else { continue };
            let bit = Mask::bit(Tier::Gpu, g as u32);
            // A group's block may span several blocks of the hash chain; then the chain's hash
            // at the group block's end stands for it.
            let block_size = match group.block_size {
                n if n > self.block_size && n % self.block_size == 0 => n,
                _ => self.block_size,
            };
            let (kind, window) = (group.spec.kind, group.spec.window);
            match out.iter_mut().find(|a| (a.kind, a.window, a.block_size) == (kind, window, block_size)) {
                Some(a) => a.mask = a.mask.union(bit),
                None => out.push(Attention { kind, window, block_size, mask: bit }),
            }
        }
        if out.is_empty() {
            let mask = Mask::bit(Tier::Gpu, 0);
            out.push(Attention { kind: GroupKind::Full, window: None, block_size: self.block_size, mask });
        }
        out.sort_by_key(|a| match a.kind {
            GroupKind::Full | GroupKind::Other => 0,
            GroupKind::SlidingWindow | GroupKind::Mamba | GroupKind::ChunkedLocal => 1,
        });
        out
    }

    /// The largest prefix of at most `length` tokens that groups attending like `a` can serve.
    fn served(&self, a: &Attention, length: u64) -> u64 {
        let per = u64::from(a.block_size);
        let ratio = a.block_size / self.block_size;
        let top = u32::try_from(length / per).unwrap_or(u32::MAX);
        let ok = |i: u32| self.runs.at((i + 1) * ratio - 1).contains(a.mask);
        let blocks = match (a.kind, a.window, self.attention_chunk) {
            (GroupKind::SlidingWindow, Some(window), _) => {
                let need = window.saturating_sub(1).div_ceil(a.block_size);
                last_window(top, need, ok)
            }
            (GroupKind::Mamba, _, _) => (0..top).rev().find(|&i| ok(i)).map_or(0, |i| i + 1),
            (GroupKind::ChunkedLocal, _, Some(chunk)) if chunk > 0 => {
                let chunk = u64::from(chunk);
                let from = u32::try_from(length / chunk * chunk / per).unwrap_or(u32::MAX);
                (from..top).take_while(|&i| ok(i)).last().map_or(from, |i| i + 1)
            }
            _ if ratio == 1 => self.runs.contiguous(0, top, |m| m.contains(a.mask)),
            _ => (0..top).take_while(|&i| ok(i)).count() as u32,
        };
        u64::from(blocks) * per
    }

    fn offload(&self, device: u64) -> u64 {
        let per = u64::from(self.offload_chunk) * u64::from(self.block_size);
        let chunks = self.prompt_tokens / per;
        if chunks * per < device.saturating_add(per) {
            return device;
        }
        let start = device / per;
        let mut end = start;
        while end < chunks {
            let last = (end + 1) * u64::from(self.offload_chunk) - 1;
            if !u32::try_from(last).is_ok_and(|i| self.runs.at(i).loadable()) {
                break;
            }
            end += 1;
        }
        // Less than a chunk of gain is not loaded.
        if end > start && end * per >= device + per { end * per } else { device }
    }
}

/// The end of the last stretch below `top` with `need` blocks in a row, or the length of the
/// stretch at the root where there is no such.
fn last_window(top: u32, need: u32, ok: impl Fn(u32) -> bool) -> u32 {
    let mut run = 0;
    for i in (0..top).rev() {
        run = if ok(i) { run + 1 } else { 0 };
        if run > 0 && run >= need {
            return i + run;
        }
    }
    run
}

fn name(kind: GroupKind) -> &'static str {
    match kind {
        GroupKind::Full => "full-attention",
        GroupKind::SlidingWindow => "sliding-window",
        GroupKind::Mamba => "Mamba",
        GroupKind::ChunkedLocal => "chunked-local",
        GroupKind::Other => "other",
    }
}
