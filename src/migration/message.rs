//! The closed set of control messages of a migration, and the version window they belong to.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::stream::{StreamOffer, StreamToken};
use crate::model::{
    Bytes, ContainerSpec, Finding, Generation, HostFacts, MigrationId, Neighbour, Pages, PostCopy,
    Rate, RestoreChoice, Side, Span, Spans, Step,
};

/// The oldest protocol version this Godwit speaks. The window is N and N-1; there is no N-1 yet.
pub const OLDEST_VERSION: u16 = 1;
/// The newest protocol version this Godwit speaks.
pub const NEWEST_VERSION: u16 = 1;

/// What one host says to the other. Which may come when is drawn at the head of [`super`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "say")]
pub enum Message {
    /// First word of a source: which versions it speaks and what it wants.
    Hello {
        /// Oldest version it speaks.
        oldest: u16,
        /// Newest version it speaks.
        newest: u16,
        /// Which migration.
        migration: MigrationId,
        /// What for.
        purpose: Purpose,
    },
    /// The destination speaks this version with it.
    Welcome {
        /// The newest version both speak.
        version: u16,
    },
    /// The container, and what the destination must know to say yes or no.
    Offer(Box<Offer>),
    /// No, and why. Nothing has happened.
    Refusal {
        /// The reasons; at least one prevents the migration, or it was a dry run.
        findings: Vec<Finding>,
    },
    /// Yes: name, address, memory and a place are set aside.
    Reserved {
        /// The destination lacks the container's image and wants its files first.
        needs_image: bool,
        /// How its memory will come back.
        #[serde(default)]
        restore: RestoreChoice,
        /// How pages may come by streams of their own.
        #[serde(default)]
        streams: Option<StreamOffer>,
        /// A part of its memory may be left behind, and fetched when it runs.
        #[serde(default)]
        post_copy: bool,
        /// Remarks that do not prevent the migration.
        findings: Vec<Finding>,
    },
    /// All files of the image have been sent.
    ImageEnd,
    /// All files of the first pass have been sent.
    StorageEnd,
    /// All pages of this round have been sent.
    RoundEnd {
        /// Its number.
        number: u32,
        /// How many frames of pages there were since the migration began, over all streams.
        frames: u64,
    },
    /// All pages of this round are in the page store.
    RoundAck {
        /// Its number.
        number: u32,
    },
    /// The container is frozen: what follows is the blackout. Its gate is still open.
    Frozen,
    /// Frames for the container go to the destination now, or it cannot keep any: the source may close its gate.
    Holding,
    /// The source's gate is closed, and no frame leaves or reaches the container there any more.
    GateClosed,
    /// CRIU has told everything; the images and pages are complete.
    DumpEnd {
        /// How many frames of pages there were since the migration began, over all streams.
        frames: u64,
        /// What everything is to be checked against.
        summary: Summary,
    },
    /// The files are as the frozen container left them.
    ResidualEnd,
    /// The destination is alive and working.
    Alive,
    /// The container is restored, held before its first instruction, and journalled as such.
    Ready {
        /// How its memory comes back.
        #[serde(default)]
        restore: RestoreChoice,
        /// What the destination did since [`Self::Frozen`] arrived.
        #[serde(default)]
        steps: Vec<ToldStep>,
    },
    /// The source has journalled that it will not resume: run.
    HandOver {
        /// The container's generation from now on.
        generation: Generation,
    },
    /// It runs at the destination, and its files are on that host's disk.
    Running {
        /// How long after the arrival of `HandOver` it ran and was reachable, in microseconds.
        after_micros: u64,
        /// What the destination did since [`Self::HandOver`] arrived.
        #[serde(default)]
        steps: Vec<ToldStep>,
        /// How many pages it still fetches: the frozen copy must stay.
        #[serde(default)]
        behind: Pages,
    },
    /// The destination needs nothing more of the frozen copy, and has journalled that. As an answer to who asks for its
    /// fate: the container was killed, and why.
    Fetched(Fetched),
    /// What is wanted of the frozen copy cannot be had any more, and never will.
    Gone {
        /// Why, for people.
        why: String,
    },
    /// The source gives up before the handover.
    Cancel {
        /// Why, for people.
        why: String,
    },
    /// The destination gives up before it was ready.
    Failed {
        /// Why, for people.
        why: String,
    },
    /// What the source knows of a migration.
    Verdict(Verdict),
    /// What the destination knows of a migration.
    Fate(Fate),
}

/// A step of the blackout, as the destination tells of it. It goes into a report and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldStep {
    /// What was done.
    pub name: String,
    /// Its begin, in microseconds from the arrival of the message that its carrier names.
    pub begin_micros: u64,
    /// Its length, in microseconds.
    pub length_micros: u64,
}

/// How a destination has fetched what was left behind. It goes into a report and nowhere else, but for its being there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Fetched {
    /// Pages that were asked for because somebody waited for them, or for one just before them.
    pub on_demand: Pages,
    /// All others.
    pub pushed: Pages,
    /// From the handover until nothing was missing.
    pub took: Duration,
    /// Why the container was killed, if it was.
    pub lost: Option<String>,
}

impl Fetched {
    /// As a report has it, but for what only the source knows.
    pub fn told(&self) -> PostCopy {
        PostCopy {
            behind: Pages(0),
            on_demand: self.on_demand,
            pushed: self.pushed,
            complete: self.lost.is_none().then_some(self.took.min(LONGEST_FETCH)),
        }
    }
}

/// The longest time that another host is believed to have fetched for.
const LONGEST_FETCH: Duration = Duration::from_secs(7 * 24 * 3600);

/// The longest time that a step of another host is believed.
const LONGEST_STEP: Duration = Duration::from_secs(3600);

impl ToldStep {
    /// What is told of these steps: as many as the other host takes.
    pub fn tell(steps: Vec<Step>, since: Instant) -> Vec<Self> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let told = steps.into_iter().take(Spans::MOST).map(|step| Self {
            begin_micros: micros(step.begin.saturating_duration_since(since)),
            length_micros: micros(step.length),
            name: step.name,
        });
        told.collect()
    }

    /// What the destination told, as a report has it. Of what is too much only the beginning is taken, and of a name
    /// nothing that a terminal would obey. `since`: from the freeze until the message it counts from was sent.
    pub fn hear(told: Vec<Self>, since: Duration) -> Vec<Span> {
        let time = |micros: u64| Duration::from_micros(micros).min(LONGEST_STEP);
        let heard = told.into_iter().take(Spans::MOST).map(|step| Span {
            side: Side::Destination,
            name: Spans::plain(&step.name),
            begin: since.saturating_add(time(step.begin_micros)),
            length: time(step.length_micros),
        });
        heard.collect()
    }
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Move a container here.
    Migrate,
    /// Say what would prevent it, and do nothing.
    DryRun,
    /// A destination asks its source what became of a migration.
    AskVerdict,
    /// A source that has handed over asks its destination what became of the container.
    AskFate,
    /// A destination that has let its container run fetches what was left behind.
    Fetch {
        /// At most so fast.
        #[serde(default)]
        rate: Option<Rate>,
    },
    /// Take pages of a migration that another connection has begun.
    Stream {
        /// What that connection was told.
        token: StreamToken,
        /// Which of the streams: a new one of the same index replaces the old.
        index: u8,
    },
}

/// A source's answer to its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// Handed over: run it.
    HandedOver {
        /// The container's generation from now on.
        generation: Generation,
    },
    /// It runs here: discard what you have.
    StayedHere,
    /// Not decided yet: ask again.
    Pending,
    /// This migration is not in the journal: a person must decide.
    Unknown,
}

/// A destination's answer to its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It runs here, or has run here: the frozen copy must go.
    Running,
    /// It runs here, and is still fetching memory of the frozen copy.
    Filling,
    /// It never ran here and never will.
    Discarded,
    /// Not decided yet: ask again.
    Pending,
    /// This migration is not in the journal: a person must decide.
    Unknown,
}

/// The container a source offers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Which migration it is offered in.
    pub migration: MigrationId,
    /// What it is.
    pub spec: ContainerSpec,
    /// Its generation now.
    pub generation: Generation,
    /// When it was created, seconds since the epoch.
    pub created_at: u64,
    /// The source's facts.
    pub facts: HostFacts,
    /// Its resident memory.
    pub memory: Bytes,
    /// The size of its own files.
    pub files: Bytes,
    /// What the caller wishes.
    pub options: crate::model::MigrationOptions,
    /// The shared memory that it has now. What it makes later is none of these, and all the same comes with it.
    #[serde(default)]
    pub segments: Vec<NamedSegment>,
}

/// A segment of shared memory that will be a memfd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NamedSegment {
    /// Its inode number on the source, which its pages are named by.
    pub inode: u64,
    /// The name of the memfd.
    pub name: String,
}

/// What the destination checks what it received against before it restores.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Each image file and its length, in bytes.
    pub images: Vec<(String, u64)>,
    /// Pages the frozen container had, as CRIU listed them.
    pub pages: Pages,
    /// Those of them that were left behind.
    #[serde(default)]
    pub behind: Pages,
    /// The inode numbers of the pipes that are its standard output and error, which CRIU's images name.
    pub stdio_inodes: [u64; 2],
    /// How CRIU's images name the `/dev/null` of its source, where that is among its streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub null: Option<NullName>,
    /// Whom it knows on its network.
    pub neighbours: Vec<Neighbour>,
}

/// A file that is in no mount of its container, as CRIU names it: the mount and the inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NullName {
    /// The number of the mount.
    pub mount: u32,
    /// The number of the inode.
    pub inode: u64,
}

impl std::fmt::Display for NullName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "file[{:x}:{:x}]", self.mount, self.inode)
    }
}

/// The newest version both windows hold.
pub fn common_version(oldest: u16, newest: u16) -> Option<u16> {
    let version = newest.min(NEWEST_VERSION);
    (version >= oldest && version >= OLDEST_VERSION && oldest <= newest).then_some(version)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_newest_version_both_speak_is_chosen() {
        assert_eq!(
            common_version(OLDEST_VERSION, NEWEST_VERSION),
            Some(NEWEST_VERSION)
        );
        assert_eq!(common_version(0, NEWEST_VERSION + 5), Some(NEWEST_VERSION));
        assert_eq!(common_version(NEWEST_VERSION + 1, NEWEST_VERSION + 2), None);
        assert_eq!(common_version(0, OLDEST_VERSION - 1), None);
        assert_eq!(common_version(3, 1), None);
    }

    #[test]
    fn what_a_peer_tells_of_its_steps_is_bounded() {
        let step = ToldStep {
            name: "\u{1b}[31m".to_owned() + &"é".repeat(1000),
            begin_micros: u64::MAX,
            length_micros: u64::MAX,
        };
        let spans = ToldStep::hear(vec![step; 1000], Duration::MAX);
        assert_eq!(spans.len(), Spans::MOST);
        for span in spans {
            assert_eq!(span.name.chars().count(), Spans::LONGEST_NAME);
            assert!(span.name.starts_with("?[31mé"), "{:?}", span.name);
            assert!(span.length <= LONGEST_STEP && span.side == Side::Destination);
        }
        let ready: Message = serde_json::from_str(r#"{"say": "ready"}"#).unwrap();
        assert!(matches!(ready, Message::Ready { steps, .. } if steps.is_empty()));
    }

    #[test]
    fn messages_survive_their_json() {
        for message in [
            Message::Welcome { version: 1 },
            Message::Verdict(Verdict::HandedOver {
                generation: Generation(4),
            }),
            Message::Fate(Fate::Discarded),
            Message::DumpEnd {
                frames: 7,
                summary: Summary {
                    images: vec![("a.img".into(), 3)],
                    ..Summary::default()
                },
            },
        ] {
            let json = serde_json::to_vec(&message).unwrap();
            assert_eq!(serde_json::from_slice::<Message>(&json).unwrap(), message);
        }
    }
}
