//! The mark that says which batch of a pipeline is in: an offset that a transaction commits to a private group, with
//! metadata `poundlock <uuid> <epoch>`. See `producer` for where it stands and who reads it.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use super::client::{Context, left};
use crate::connector::Identity;

/// Between two questions to a group's coordinator that is not yet one.
const ASK_AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Marker {
    /// The newest batch that is in.
    pub batch: Option<u64>,
    pub epoch: u64,
    /// Another checkpoint that has written by this name: at a topic of ours after us, or anywhere while we have not.
    pub other: Option<String>,
}

/// The newest marker of ours in this group, at whatever topic it was left.
pub fn read_marker(
    consumer: &BaseConsumer<Context>,
    identity: &Identity,
    own: &[String],
    deadline: Instant,
) -> KafkaResult<Marker> {
    let metadata = consumer.fetch_metadata(None, left(deadline))?;
    let mut asked = TopicPartitionList::new();
    for topic in metadata.topics().iter().filter(|topic| topic.error().is_none() && !topic.partitions().is_empty()) {
        asked.add_partition(topic.name(), 0);
    }
    if asked.count() == 0 {
        return Ok(Marker::default());
    }
    let found = loop {
        match consumer.committed_offsets(asked.clone(), left(deadline)) {
            // A broker that has just started, or taken the group over: librdkafka asks it once.
            Err(error) if is_moving(&error) && Instant::now() + ASK_AGAIN < deadline => std::thread::sleep(ASK_AGAIN),
            answer => break answer?,
        }
    };
    let ours = identity.uuid.to_string();
    let mut newest = Marker::default();
    let (mut is_known, mut is_passed) = (false, false);
    for element in found.elements() {
        // First: an offset that could not be read is no offset, not none.
        if let Err(error) = element.error() {
            // Of others' topics we may know nothing.
            if own.iter().any(|topic| topic == element.topic()) {
                return Err(error);
            }
            continue;
        }
        let Offset::Offset(offset) = element.offset() else { continue };
        match parse_marker(element.metadata(), offset) {
            Some((uuid, marker)) if uuid == ours => {
                is_known = true;
                newest.batch = newest.batch.max(marker.batch);
                newest.epoch = newest.epoch.max(marker.epoch);
            }
            // At a topic of ours, it has written after us.
            Some((uuid, Marker { batch: Some(_), .. })) => {
                is_passed |= own.iter().any(|topic| topic == element.topic());
                newest.other = Some(uuid.to_string());
            }
            Some(_) => {}
            None => tracing::info!(topic = element.topic(), "an offset that is no marker of ours is passed over"),
        }
    }
    newest.other = newest.other.filter(|_| !is_known || is_passed);
    Ok(newest)
}

fn is_moving(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator};
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| [CoordinatorLoadInProgress, CoordinatorNotAvailable, NotCoordinator].contains(&code))
}

pub fn metadata(identity: &Identity) -> String {
    format!("poundlock {} {}", identity.uuid, identity.epoch)
}

/// `poundlock <uuid> <epoch>` and N+1.
fn parse_marker(metadata: &str, offset: i64) -> Option<(&str, Marker)> {
    let (uuid, epoch) = metadata.strip_prefix("poundlock ")?.split_once(' ')?;
    let batch = u64::try_from(offset).ok()?.checked_sub(1);
    Some((uuid, Marker { batch, epoch: epoch.parse().ok()?, other: None }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_names_its_checkpoint_and_its_epoch() {
        let uuid = "8b7c2e9a-0000-4000-8000-000000000001";
        let parsed = parse_marker("poundlock 8b7c2e9a-0000-4000-8000-000000000001 7", 42);
        assert_eq!(parsed, Some((uuid, Marker { batch: Some(41), epoch: 7, other: None })));
        assert_eq!(parse_marker("poundlock x 7", 0), Some(("x", Marker { batch: None, epoch: 7, other: None })));
        for foreign in ["", "poundlock", "poundlock x", "flink x 1", "poundlock x -1"] {
            assert_eq!(parse_marker(foreign, 5), None, "{foreign}");
        }
    }
}
