//! What does llm-d's Go indexer call a block: its request keys, for both of its algorithms.
//!
//! ```text
//! root(model) = H(init, null, model)          init = H(seed)
//! key[0]      = H(root, tokens, extras)
//! key[i]      = H(key[i-1], tokens, extras)
//! ```
//!
//! `cbor-fnv`: FNV-1a-64 over the canonical CBOR of that array of three. `xxh64`: XXH64 over the
//! parent as u64 LE, tokens as u32 LE, and each extra text behind its byte length as u64 LE (the
//! model is the extra of the root). Nothing here allocates: bytes go straight into the hash.

use xxhash_rust::xxh64::{Xxh64, xxh64};

use super::cbor::{self, Sink};

/// An llm-d request key: a block and its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey(pub u64);

/// llm-d's `hashAlgorithm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Algo {
    /// FNV-1a-64 of canonical CBOR, the default.
    #[default]
    CborFnv,
    /// XXH64.
    Xxh64,
}

impl Algo {
    /// The name in llm-d's configuration.
    pub fn name(self) -> &'static str {
        match self {
            Algo::CborFnv => "cbor-fnv",
            Algo::Xxh64 => "xxh64",
        }
    }

    /// The algorithm of that name.
    pub fn from_name(name: &str) -> Option<Algo> {
        [Algo::CborFnv, Algo::Xxh64].into_iter().find(|a| a.name() == name)
    }
}

/// Extra texts were given, but not one list per whole block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{lists} lists of extra texts for {blocks} blocks")]
pub struct ExtrasMismatch {
    /// Lists given.
    pub lists: usize,
    /// Whole blocks of the prompt.
    pub blocks: usize,
}

/// The request keys of one deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Llmd {
    algo: Algo,
    init: u64,
}

impl Llmd {
    /// The keys of an indexer with this `hashAlgorithm` and `hashSeed`.
    pub fn new(algo: Algo, seed: &str) -> Llmd {
        let init = match algo {
            Algo::CborFnv => {
                let mut h = Fnv::default();
                h.put(seed.as_bytes());
                h.0
            }
            Algo::Xxh64 => xxh64(seed.as_bytes(), 0),
        };
        Llmd { algo, init }
    }

    /// The algorithm.
    pub fn algo(&self) -> Algo {
        self.algo
    }

    /// The parent of first blocks. `model` is the LoRA adapter's name where the request has one.
    pub fn root(&self, model: &str) -> RequestKey {
        RequestKey(match self.algo {
            Algo::CborFnv => cbor_fnv(|h| {
                cbor::array(h, 3);
                cbor::uint(h, self.init);
                cbor::null(h);
                cbor::text(h, model);
            }),
            Algo::Xxh64 => xx(self.init, &[], &[model]),
        })
    }

    /// The key of a block after `parent`. `extras` are the identifiers of the multimodal items
    /// that overlap it, in order of their start.
    pub fn next(&self, parent: RequestKey, tokens: &[u32], extras: &[&str]) -> RequestKey {
        RequestKey(match self.algo {
            Algo::CborFnv => cbor_fnv(|h| write_block(h, parent, tokens, extras)),
            Algo::Xxh64 => xx(parent.0, tokens, extras),
        })
    }

    /// The keys of every whole block of a prompt, into `out`. The tail that does not fill a
    /// block is left out; of size 0 there are none. `extras` is empty or has one list per block.
    ///
    /// # Errors
    ///
    /// [`ExtrasMismatch`]; `out` is empty then.
    pub fn prompt_keys(
        &self,
        model: &str,
        tokens: &[u32],
        block_size: u32,
        extras: &[Vec<&str>],
        out: &mut Vec<RequestKey>,
    ) -> Result<(), ExtrasMismatch> {
        out.clear();
        let blocks = tokens.len().checked_div(block_size as usize).unwrap_or(0);
        if !extras.is_empty() && extras.len() != blocks {
            return Err(ExtrasMismatch { lists: extras.len(), blocks });
        }
        if blocks == 0 {
            return Ok(());
        }
        let mut parent = self.root(model);
        for (i, block) in tokens.chunks_exact(block_size as usize).enumerate() {
            parent = self.next(parent, block, extras.get(i).map_or(&[], Vec::as_slice));
            out.push(parent);
        }
        Ok(())
    }
}

fn write_block(h: &mut impl Sink, parent: RequestKey, tokens: &[u32], extras: &[&str]) {
    cbor::array(h, 3);
    cbor::uint(h, parent.0);
    cbor::array(h, tokens.len());
    for &t in tokens {
        cbor::uint(h, u64::from(t));
    }
    if extras.is_empty() {
        cbor::null(h);
    } else {
        cbor::array(h, extras.len());
        for id in extras {
            // A Go struct with one field, which is spelt so.
            cbor::map(h, 1);
            cbor::text(h, "Hash");
            cbor::text(h, id);
        }
    }
}

fn cbor_fnv(write: impl FnOnce(&mut Fnv)) -> u64 {
    let mut h = Fnv::default();
    write(&mut h);
    h.0
}

fn xx(parent: u64, tokens: &[u32], extras: &[&str]) -> u64 {
    let mut h = Xxh64::new(0);
    h.update(&parent.to_le_bytes());
    for t in tokens {
        h.update(&t.to_le_bytes());
    }
    for text in extras {
        h.update(&(text.len() as u64).to_le_bytes());
        h.update(text.as_bytes());
    }
    h.digest()
}

/// FNV-1a, 64 bits.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Sink for Fnv {
    fn put(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.0 = (self.0 ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(llmd: Llmd, model: &str, tokens: &[u32], block_size: u32, extras: &[Vec<&str>]) -> Vec<u64> {
        let mut out = vec![];
        llmd.prompt_keys(model, tokens, block_size, extras, &mut out).unwrap();
        out.iter().map(|k| k.0).collect()
    }

    fn fnv(seed: &str) -> Llmd {
        Llmd::new(Algo::CborFnv, seed)
    }

    #[test]
    fn cbor_fnv_keys_are_those_of_the_go_indexer() {
        // The constant of its end-to-end test.
        let granite = keys(
            fnv(""),
            "ibm-granite/granite-3.1-8b-instruct",
            &[8197, 438, 322, 18926, 432, 45600, 49],
            4,
            &[],
        );
        assert_eq!(granite, [1334984470577408192]);
        let plain: Vec<u32> = (1..=32).collect();
        assert_eq!(keys(fnv(""), "test-model", &plain, 16, &[]), [9540012594951042066, 16921089685996993662]);
        let widths = [0, 23, 24, 255, 256, 65535, 65536, 128000];
        assert_eq!(
            keys(fnv("42"), "meta-llama/Llama-3.1-8B", &widths, 4, &[]),
            [921380435188335528, 3445191503298004116]
        );
    }

    #[test]
    fn items_are_maps_with_one_entry() {
        let llmd = fnv("");
        let root = llmd.root("test-model");
        assert_eq!(root.0, 17515353698173365712);
        let extras = [vec![], vec!["img-a", "img-b"]];
        let got = keys(llmd, "test-model", &[1, 2, 3, 4, 5, 6, 7, 8], 4, &extras);
        assert_eq!(got, [12915946116324560722, 14855545484431390016]);
        let bytes = |parent, tokens: &[u32], extras: &[&str]| {
            let mut out = vec![];
            write_block(&mut out, parent, tokens, extras);
            out.iter().map(|b| format!("{b:02x}")).collect::<String>()
        };
        assert_eq!(bytes(root, &[1, 2, 3, 4], &[]), "831bf31309635ef2add08401020304f6");
        assert_eq!(
            bytes(RequestKey(got[0]), &[5, 6, 7, 8], &["img-a", "img-b"]),
            "831bb33ea88fa99c8f52840506070882a1644861736865696d672d61a1644861736865696d672d62"
        );
    }

    #[test]
    fn xxh64_keys_follow_their_definition() {
        // Computed with Python's xxhash from the definition above.
        let llmd = Llmd::new(Algo::Xxh64, "42");
        assert_eq!(llmd.root("test-model").0, 15859082555703346732);
        let extras = [vec![], vec!["img-a", "img-b"]];
        assert_eq!(
            keys(llmd, "test-model", &[1, 2, 3, 4, 5, 6, 7, 128000], 4, &extras),
            [1496400964962658117, 9468848950570665549]
        );
    }

    #[test]
    fn extras_come_one_list_per_whole_block_or_not_at_all() {
        let mut out = vec![RequestKey(1)];
        let err = fnv("").prompt_keys("m", &[1, 2, 3, 4, 5], 2, &[vec!["x"]], &mut out);
        assert_eq!(err, Err(ExtrasMismatch { lists: 1, blocks: 2 }));
        assert!(out.is_empty());
        assert_eq!(keys(fnv(""), "m", &[1, 2], 0, &[]), Vec::<u64>::new());
    }
}
