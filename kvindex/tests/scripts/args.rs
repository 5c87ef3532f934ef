//! What does one line of a script say? Labels, options, and what is wrong with it.

use std::collections::HashMap;
use std::str::FromStr;

use kvproto::hash::canonical::{MmForm, MmItem, PromptExtras};
use kvproto::{GroupKind, GroupSpec, Tier};

/// Tokens that one label stands for.
pub const TOKENS_PER_LABEL: u32 = 4;

/// Options without a value.
const FLAGS: [&str; 6] = ["after", "based", "described", "bare", "canonical", "speculative"];
/// Options that may be given more than once.
const LISTS: [&str; 3] = ["mm", "mm_bare", "to"];

/// Labels and options of one command.
#[derive(Default)]
pub struct Args<'a> {
    pub labels: Vec<u32>,
    /// Labels after `after`: what precedes `labels`.
    pub after: Vec<u32>,
    pub spec: Option<GroupSpec>,
    pub items: Vec<MmItem<'a>>,
    /// Pods that a request is routed to.
    pub to: Vec<&'a str>,
    /// Every option, with its value where it takes one.
    given: HashMap<&'a str, &'a str>,
}

impl<'a> Args<'a> {
    /// Reads labels and those options that `allowed` lists.
    pub fn parse(text: &'a str, allowed: &[&str]) -> Result<Args<'a>, String> {
        let mut a = Args::default();
        let mut words = text.split_whitespace().peekable();
        while let Some(w) = words.next() {
            if let Ok(label) = w.parse() {
                if a.has("after") {
                    a.after.push(label)
                } else {
                    a.labels.push(label)
                }
                continue;
            }
            if !allowed.iter().flat_map(|l| l.split(' ')).any(|known| known == w) {
                return Err(format!("`{w}` means nothing here"));
            }
            let value = match FLAGS.contains(&w) {
                true => "",
                false => words.next().ok_or_else(|| format!("`{w}` needs a value"))?,
            };
            match w {
                "mm" | "mm_bare" => a.items.push(item(value)?),
                "to" => a.to.push(value),
                "kind" => {
                    let is_window = |w: &&str| value == "sliding_window" && w.parse::<u32>().is_ok();
                    let window = words.next_if(is_window).map(number).transpose()?;
                    a.spec = Some(GroupSpec { kind: kind(value)?, window });
                }
                _ => {}
            }
            if a.given.insert(w, value).is_some() && !LISTS.contains(&w) {
                return Err(format!("`{w}` is given twice"));
            }
        }
        Ok(a)
    }

    pub fn has(&self, option: &str) -> bool {
        self.given.contains_key(option)
    }

    pub fn text(&self, option: &str) -> Option<&'a str> {
        self.given.get(option).copied()
    }

    pub fn number(&self, option: &str) -> Result<Option<u32>, String> {
        self.text(option).map(number).transpose()
    }

    /// The tier of an event; the device where none is given.
    pub fn tier(&self) -> Result<Tier, String> {
        self.text("tier").map_or(Ok(Tier::Gpu), tier)
    }

    /// What the blocks' extra keys are made of.
    pub fn extras(&self) -> PromptExtras<'_> {
        let form = if self.has("mm_bare") { MmForm::Bare } else { MmForm::Placed };
        PromptExtras { cache_salt: self.text("salt"), items: &self.items, form }
    }
}

/// The tokens that labels stand for.
pub fn tokens_of(labels: &[u32]) -> Vec<u32> {
    labels.iter().flat_map(|l| (0..TOKENS_PER_LABEL).map(move |i| l * 10 + i)).collect()
}

pub fn number<T: FromStr>(w: &str) -> Result<T, String> {
    w.parse().map_err(|_| format!("`{w}` is not a number that fits"))
}

pub fn tier(name: &str) -> Result<Tier, String> {
    Tier::ALL.into_iter().find(|t| t.name() == name).ok_or_else(|| format!("no tier `{name}`"))
}

fn kind(name: &str) -> Result<GroupKind, String> {
    match name {
        "full" => Ok(GroupKind::Full),
        "sliding_window" => Ok(GroupKind::SlidingWindow),
        "mamba" => Ok(GroupKind::Mamba),
        "chunked_local" => Ok(GroupKind::ChunkedLocal),
        _ => Err(format!("no kind `{name}`")),
    }
}

fn item(w: &str) -> Result<MmItem<'_>, String> {
    let parts = w.split_once('@').and_then(|(id, place)| Some((id, place.split_once('+')?)));
    let (identifier, (offset, length)) = parts.ok_or_else(|| format!("`{w}` is not IMG@AT+LENGTH"))?;
    Ok(MmItem { identifier, offset: number(offset)?, length: number(length)? })
}
