//! An engine's events as bytes: vLLM's payloads, in the array form of up to 0.23 and the map form
//! since.

use rmp::encode as mp;

/// Something that happened to an engine's cache.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// Blocks of a sequence came onto the device.
    Stored {
        group: u32,
        /// Tokens that the group looks back at, where it does not look at all.
        window: Option<u32>,
        parent: Option<u64>,
        /// The blocks kept; all of `tokens` in a full group.
        hashes: Vec<u64>,
        tokens: Vec<u32>,
        block: u32,
        /// On the first block of a sequence.
        salt: Option<&'static str>,
        /// Whether the first of `hashes` is the first of its sequence.
        at_root: bool,
    },
    /// A chunk came into the tier below, with its tokens.
    Described { parent: Option<u64>, hashes: Vec<u64>, tokens: Vec<u32>, block: u32 },
    /// A chunk came into the tier below, by its last hash alone.
    Bare { hash: u64 },
    /// Copies are gone.
    Removed { cpu: bool, group: u32, hashes: Vec<u64> },
    /// Everything is gone.
    Cleared,
}

/// Which form of vLLM's payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Array,
    Map,
}

/// The payload of a batch made at `ts`.
pub fn payload(ts: f64, said: &[Said], form: Form) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + said.len() * 96);
    put(mp::write_array_len(&mut out, 3));
    put(mp::write_f64(&mut out, ts));
    put(mp::write_array_len(&mut out, said.len() as u32));
    for event in said {
        encode(&mut out, event, form);
    }
    put(mp::write_uint(&mut out, 0));
    out
}

fn encode(out: &mut Vec<u8>, event: &Said, form: Form) {
    match event {
        Said::Stored { group, window, parent, hashes, tokens, block, salt, at_root } => {
            let kind = if window.is_some() { "sliding_window" } else { "full_attention" };
            let salt = salt.filter(|_| *at_root && !hashes.is_empty());
            let stored = Stored { parent: *parent, hashes, tokens, block: *block, medium: "GPU" };
            stored.encode(out, form, salt, Some((*group, kind, *window)));
        }
        Said::Described { parent, hashes, tokens, block } => {
            let stored = Stored { parent: *parent, hashes, tokens, block: *block, medium: "CPU" };
            stored.encode(out, form, None, None);
        }
        Said::Bare { hash } => {
            let hashes = std::slice::from_ref(hash);
            Stored { parent: None, hashes, tokens: &[], block: 0, medium: "CPU" }
                .encode(out, form, None, None);
        }
        Said::Removed { cpu, group, hashes } => {
            let fields = if *cpu { 3 } else { 4 };
            head(out, form, "BlockRemoved", fields);
            key(out, form, "block_hashes");
            list(out, hashes.iter().copied());
            key(out, form, "medium");
            put(mp::write_str(out, if *cpu { "CPU" } else { "GPU" }));
            if !cpu {
                key(out, form, "group_idx");
                put(mp::write_uint(out, u64::from(*group)));
            }
        }
        Said::Cleared => head(out, form, "AllBlocksCleared", 1),
    }
}

struct Stored<'a> {
    parent: Option<u64>,
    hashes: &'a [u64],
    tokens: &'a [u32],
    block: u32,
    medium: &'a str,
}

impl Stored<'_> {
    fn encode(
        &self,
        out: &mut Vec<u8>,
        form: Form,
        salt: Option<&str>,
        group: Option<(u32, &str, Option<u32>)>,
    ) {
        head(out, form, "BlockStored", 8 + if group.is_some() { 4 } else { 0 });
        key(out, form, "block_hashes");
        list(out, self.hashes.iter().copied());
        key(out, form, "parent_block_hash");
        optional(out, self.parent);
        key(out, form, "token_ids");
        list(out, self.tokens.iter().map(|&t| u64::from(t)));
        key(out, form, "block_size");
        put(mp::write_uint(out, u64::from(self.block)));
        key(out, form, "lora_id");
        put(mp::write_nil(out));
        key(out, form, "medium");
        put(mp::write_str(out, self.medium));
        key(out, form, "lora_name");
        put(mp::write_nil(out));
        let Some((group, kind, window)) = group else { return };
        key(out, form, "extra_keys");
        match salt {
            None => put(mp::write_nil(out)),
            Some(salt) => {
                put(mp::write_array_len(out, self.hashes.len() as u32));
                put(mp::write_array_len(out, 1));
                put(mp::write_str(out, salt));
                for _ in 1..self.hashes.len() {
                    put(mp::write_nil(out));
                }
            }
        }
        key(out, form, "group_idx");
        put(mp::write_uint(out, u64::from(group)));
        key(out, form, "kv_cache_spec_kind");
        put(mp::write_str(out, kind));
        key(out, form, "kv_cache_spec_sliding_window");
        optional(out, window.map(u64::from));
    }
}

fn head(out: &mut Vec<u8>, form: Form, tag: &str, fields: u32) {
    match form {
        Form::Array => put(mp::write_array_len(out, fields)),
        Form::Map => {
            put(mp::write_map_len(out, fields));
            put(mp::write_str(out, "type"));
        }
    }
    put(mp::write_str(out, tag));
}

fn key(out: &mut Vec<u8>, form: Form, name: &str) {
    if form == Form::Map {
        put(mp::write_str(out, name));
    }
}

fn list(out: &mut Vec<u8>, all: impl ExactSizeIterator<Item = u64>) {
    put(mp::write_array_len(out, all.len() as u32));
    for n in all {
        put(mp::write_uint(out, n));
    }
}

fn optional(out: &mut Vec<u8>, n: Option<u64>) {
    match n {
        Some(n) => put(mp::write_uint(out, n)),
        None => put(mp::write_nil(out)),
    }
}

/// Writing to memory cannot fail; `put` says so once.
fn put<T, E: std::fmt::Debug>(written: Result<T, E>) {
    written.expect("a vector takes every byte");
}
