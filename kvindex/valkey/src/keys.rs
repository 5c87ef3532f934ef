//! Where in the keyspace is what?
//!
//! All keys of a publisher share a hash tag, so that they lie in one slot and a commit is one transaction of
//! one node. Publishers are spread over [`PARTITIONS`] tags, so that what is asked of several that share one
//! rides in one pipeline.

use std::fmt::Write as _;

use kvindex::HolderSpec;
use xxhash_rust::xxh3::xxh3_64;

/// Hash tags of a namespace. Part of the format: another number finds nothing that was written before.
pub const PARTITIONS: u64 = 64;

/// The keys of one publisher.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    partition: u64,
    tag: String,
    id: String,
}

impl Keys {
    /// Those of `spec` below `namespace`.
    pub fn new(namespace: &str, spec: &HolderSpec) -> Keys {
        let mut id = String::new();
        for part in [&spec.tenant, &spec.model, &spec.instance] {
            escape(part, &mut id);
            id.push('/');
        }
        // Whatever else names blocks is in the key too: registered with another salt, it is another publisher.
        let mut names = Vec::new();
        for part in [Some(&spec.salt), spec.lora.as_ref()].into_iter().flatten() {
            names.extend((part.len() as u64).to_le_bytes());
            names.extend(part.as_bytes());
        }
        let _ = write!(id, "{}/{:08x}", spec.rank, xxh3_64(&names) as u32);
        let partition = xxh3_64(id.as_bytes()) % PARTITIONS;
        let tag = tag(namespace, partition);
        Keys { partition, tag, id }
    }

    /// The publisher, as keys name it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Which publishers can be asked about in one pipeline.
    pub fn partition(&self) -> u64 {
        self.partition
    }

    /// Who writes: a string that expires.
    pub fn lease(&self) -> String {
        format!("{}:lease:{}", self.tag, self.id)
    }

    /// Which generation of the other keys counts: a number.
    pub fn generation(&self) -> String {
        format!("{}:gen:{}", self.tag, self.id)
    }

    /// What the engine's names stand for, and where its stream stands: a hash.
    pub fn names(&self, generation: u64) -> String {
        format!("{}:names:{generation}:{}", self.tag, self.id)
    }

    /// Which blocks it has: a hash.
    pub fn blocks(&self, generation: u64, incarnation: u32) -> String {
        format!("{}:blocks:{generation}.{incarnation}:{}", self.tag, self.id)
    }
}

/// The keys of routings, which are of no publisher: all in one slot, so that one stream tells of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RoutingKeys(String);

impl RoutingKeys {
    /// Those below `namespace`.
    pub fn new(namespace: &str) -> RoutingKeys {
        RoutingKeys(tag(namespace, "routings"))
    }

    /// What is new: a stream.
    pub fn news(&self) -> String {
        format!("{}:news", self.0)
    }

    /// One request's blocks: a string that expires.
    pub fn routing(&self, request: u128) -> String {
        format!("{}:routing:{request:032x}", self.0)
    }
}

fn tag(namespace: &str, part: impl std::fmt::Display) -> String {
    let mut tag = "{kvd:".to_owned();
    escape(namespace, &mut tag);
    let _ = write!(tag, ":{part}}}");
    tag
}

/// `text` as part of a key's hash tag.
pub fn escaped(text: &str) -> String {
    let mut out = String::new();
    escape(text, &mut out);
    out
}

/// Keeps braces, which would make another hash tag, and separators out of names.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '{' | '}' | '/' | '%' | '*' | '?' | '[' | ']' | '\\' => {
                let _ = write!(out, "%{:02x}", c as u32);
            }
            c if c.is_control() || c.is_whitespace() => {
                let _ = write!(out, "%{:02x}", c as u32);
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tag_for_all_keys_of_a_publisher_whatever_its_name() {
        let spec = HolderSpec::new("t", "org/{model}", "10.0.0.1:8000", 3);
        let keys = Keys::new("a}b", &spec);
        for key in [keys.lease(), keys.generation(), keys.names(7), keys.blocks(7, 1)] {
            assert_eq!((key.matches('{').count(), key.matches('}').count()), (1, 1), "{key}");
            assert!(key.starts_with("{kvd:a%7db:"), "{key}");
        }
    }

    #[test]
    fn another_salt_rank_or_tenant_is_another_publisher() {
        let spec = HolderSpec::new("t", "m", "i", 0);
        let mut others = vec![spec.clone(); 4];
        others[0].salt = "s".to_owned();
        others[1].rank = 1;
        others[2].tenant = "u".to_owned();
        others[3].lora = Some(String::new());
        let keys = Keys::new("n", &spec);
        assert!(others.iter().all(|o| Keys::new("n", o).id != keys.id));
    }
}
