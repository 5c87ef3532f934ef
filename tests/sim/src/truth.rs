//! What would be right to answer? Read off an engine's own blocks, not off what it said of them.

use crate::engine::Shape;

/// Where one block of a sequence lies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// On the device, in the full-attention group.
    pub full: bool,
    /// On the device, in the window group.
    pub window: bool,
    /// In the tier below.
    pub below: bool,
}

/// What an engine has of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// Blocks from the root, in any tier.
    pub cached: u32,
    /// Blocks from the root on the device.
    pub device: u32,
    /// Blocks from the root in the tier below.
    pub below: u32,
    /// Tokens that the engine would report as cached.
    pub tokens: u64,
}

impl Holding {
    /// Of a prompt of `len` tokens, the first of a sequence of whose blocks `found` tells.
    pub fn of(found: &[Found], len: usize, shape: &Shape) -> Holding {
        let found = &found[..len / shape.block as usize];
        let run = |ok: fn(&Found) -> bool| found.iter().take_while(|f| ok(f)).count() as u32;
        Holding {
            cached: run(|f| f.full || f.below),
            device: run(|f| f.full),
            below: run(|f| f.below),
            tokens: engine_tokens(found, len, shape),
        }
    }
}

/// Blocks of a window of `window` tokens that must be there for a hit.
pub fn window_blocks(window: u32, block: u32) -> usize {
    ((window - 1).div_ceil(block) as usize).max(1)
}

/// How many of a prompt's `len` tokens the engine finds on the device: never the last one, every
/// block in the full group, and the last blocks in the window group.
pub fn device_hit(found: &[Found], len: usize, shape: &Shape) -> usize {
    let block = shape.block as usize;
    let mut blocks = found.iter().take_while(|f| f.full).count().min((len - 1) / block);
    if let Some(window) = shape.window {
        let need = window_blocks(window, shape.block);
        let leading = found.iter().take_while(|f| f.window).count();
        let ends_well = |&end: &usize| end >= need && found[end - need..end].iter().all(|f| f.window);
        blocks = (1..=blocks).rev().find(ends_well).unwrap_or(leading.min(blocks));
    }
    blocks * block
}

/// The device's hit, and what the tier below adds in whole chunks.
fn engine_tokens(found: &[Found], len: usize, shape: &Shape) -> u64 {
    let device = device_hit(found, len, shape);
    let Some((chunk, _, _)) = shape.offload else { return device as u64 };
    let per = chunk * shape.block as usize;
    let loadable = |c: &usize| found.get((c + 1) * chunk - 1).is_some_and(|f| f.below);
    let start = device / per;
    let chunks = (start..len / per).take_while(loadable).count();
    let end = (start + chunks) * per;
    // Less than a whole chunk more is not worth loading.
    if chunks > 0 && end >= device + per { end as u64 } else { device as u64 }
}
