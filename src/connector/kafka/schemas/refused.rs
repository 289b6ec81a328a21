//! Ids of schemas whose records cannot be decoded for now: which records were refused for it, and in which words.
//!
//! What is noted is kept by the checkpoint, so that a replay refuses the same records with the same words, though the
//! registry may know better by then. Of one id and partition it is a list of steps: reasons change seldom, and that the id is
//! not in the registry, by far the most frequent one, is kept as the one offset that it is.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Reasons that are noted of an id and partition, one after the other: the last one stands for all that would follow.
pub const STEPS_MAX: usize = 8;

/// An id whose records cannot be decoded for now.
#[derive(Debug, Default, Clone)]
pub struct Refused {
    /// When the registry last said so.
    pub asked: Option<Instant>,
    /// Why, for the rows; `None`: the registry does not know it.
    pub reason: Option<String>,
    /// By partition: the records that were refused, and why.
    pub until: BTreeMap<i32, Vec<Step>>,
    /// Which of them it is, in the order in which they were met.
    pub number: u64,
}

/// Up to an offset, from behind the step before, records were refused for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub until: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// As it is kept.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Noted {
    /// Up to which offset, of ids that were not in the registry.
    unknown: BTreeMap<u32, BTreeMap<i32, i64>>,
    /// Of ids with other reasons too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    unusable: BTreeMap<u32, BTreeMap<i32, Vec<Step>>>,
}

impl Noted {
    pub fn of(refused: &BTreeMap<u32, Refused>) -> Self {
        let mut noted = Self::default();
        for (id, refused) in refused.iter().filter(|(_, refused)| !refused.until.is_empty()) {
            let alone = |steps: &Vec<Step>| match steps[..] {
                [Step { until, reason: None }] => Some(until),
                _ => None,
            };
            let plain = refused.until.iter().map(|(partition, steps)| Some((*partition, alone(steps)?)));
            match plain.collect::<Option<BTreeMap<_, _>>>() {
                Some(plain) => drop(noted.unknown.insert(*id, plain)),
                None => drop(noted.unusable.insert(*id, refused.until.clone())),
            }
        }
        noted
    }

    pub fn refused(self) -> BTreeMap<u32, Refused> {
        let steps = |(partition, until)| (partition, vec![Step { until, reason: None }]);
        let plain = self.unknown.into_iter().map(|(id, until)| (id, until.into_iter().map(steps).collect()));
        plain.chain(self.unusable).map(|(id, until)| (id, Refused { until, ..Refused::default() })).collect()
    }
}

impl Refused {
    /// Why a record was refused before: `None` if it was not.
    pub fn step(&self, partition: i32, offset: i64) -> Option<&Step> {
        self.until.get(&partition)?.iter().find(|step| offset <= step.until)
    }

    /// Up to which offset records were refused.
    pub fn last(&self, partition: i32) -> Option<i64> {
        self.until.get(&partition)?.last().map(|step| step.until)
    }

    /// Refuses a record, for the reason for which it was refused before, if it was. Returns it, and whether it is new.
    pub fn refuse(&mut self, partition: i32, offset: i64) -> (Option<String>, bool) {
        if let Some(step) = self.step(partition, offset) {
            return (step.reason.clone(), false);
        }
        let reason = self.reason.clone();
        let steps = self.until.entry(partition).or_default();
        let is_full = steps.len() >= STEPS_MAX;
        match steps.last_mut() {
            Some(last) if is_full || last.reason == reason => {
                last.until = offset;
                (last.reason.clone(), true)
            }
            _ => {
                steps.push(Step { until: offset, reason: reason.clone() });
                (reason, true)
            }
        }
    }
}
