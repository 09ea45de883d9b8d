//! The messages before two processes trust each other: a greeting, and replies to it. Pure functions of bytes.
//!
//! | greeting | bytes | reply | bytes |
//! |---|---|---|---|
//! | magic | 8 | magic | 8 |
//! | version | 4 | version | 4 |
//! | purpose | 4 | kind: welcome, answer, refusal | 4 |
//! | group | 16 | length of the body | 4 |
//! | world size, rank, host, card | 4 x 8 | body | at most what the reader expects |
//! | nonce | 16 | | |
//! | code of all of it | 32 | code of the nonce and all of it | 32 |
//!
//! Numbers are little-endian. The codes are made with the job's token, so both sides know that the other belongs to the job, and
//! a reply belongs to its greeting.
//!
//! Deliberately not here: connections.

use super::token::{CODE, JobToken};

const MAGIC: [u8; 8] = *b"syncbn\r\n";
const VERSION: u32 = 2;

/// The length of a greeting.
pub(crate) const GREETING: usize = 16 + 16 + 4 * 8 + 16 + CODE;
/// The length of a reply before its body.
pub(crate) const HEAD: usize = 20;
/// The most ranks that a refusal lists.
const LISTED: usize = 64;
/// The longest body of a refusal or a welcome.
const SHORT: usize = 4 + 8 * LISTED;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Purpose {
    /// To get rank 0's bytes.
    Share = 1,
    /// To become a group of TCP ranks.
    Group = 2,
    /// To be the connection between two ranks of such a group.
    Link = 3,
}

/// The first message of a process that connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeting {
    pub(crate) purpose: Purpose,
    /// The group whose ranks are connected; zeros where none has been made.
    pub(crate) group: [u8; 16],
    pub(crate) world_size: u64,
    pub(crate) rank: u64,
    /// The rank that is greeted.
    pub(crate) host: u64,
    /// A number whose meaning depends on the purpose.
    pub(crate) card: u64,
    /// A random number, different in every process.
    pub(crate) nonce: [u8; 16],
}

/// Why a greeting is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it does not speak this protocol")]
    NotSyncbn,
    #[error("it speaks version {0} of the protocol, expected {VERSION}")]
    Version(u32),
    #[error("it belongs to another job: its job id or SYNCBN_SECRET differs")]
    OtherJob,
    #[error("it came for another purpose or group")]
    OtherGroup,
    #[error("it knows of {got} ranks, expected {expected}")]
    WorldSize { got: u64, expected: u64 },
    #[error("it says that it is rank {0}, expected one that is still to come")]
    Rank(u64),
    #[error("another process came as the same rank")]
    Replaced,
    #[error("ranks {0:?} did not come")]
    Missing(Vec<u64>),
}

/// The reply to a greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The rank is accepted, and waits for the answer.
    Welcome,
    Answer(Vec<u8>),
    Refused(Refusal),
}

impl Greeting {
    pub(crate) fn to_bytes(self, token: &JobToken) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(GREETING);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.purpose as u32).to_le_bytes());
        bytes.extend(self.group);
        for number in [self.world_size, self.rank, self.host, self.card] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.nonce);
        bytes.extend(token.code(&[b"greeting", &bytes]));
        bytes
    }

    /// The greeting, if it belongs to the job.
    pub(crate) fn parse(bytes: &[u8; GREETING], token: &JobToken) -> Result<Self, Refusal> {
        let mut reader = Reader(bytes);
        reader.magic()?;
        let (said, code) = bytes.split_at(GREETING - CODE);
        if !token.proves(&[b"greeting", said], code) {
            return Err(Refusal::OtherJob);
        }
        let purpose = match reader.u32()? {
            1 => Purpose::Share,
            2 => Purpose::Group,
            3 => Purpose::Link,
            _ => return Err(Refusal::OtherGroup),
        };
        let group = reader.take()?;
        let [world_size, rank, host, card] = [reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?];
        Ok(Self { purpose, group, world_size, rank, host, card, nonce: reader.take()? })
    }
}

impl Reply {
    pub(crate) fn to_bytes(&self, token: &JobToken, nonce: &[u8; 16]) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Welcome => (1_u32, Vec::new()),
            Self::Answer(body) => (2, body.clone()),
            Self::Refused(refusal) => (3, refusal.body()),
        };
        let mut bytes = Vec::with_capacity(HEAD + body.len() + CODE);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes.extend(token.code(&[b"reply", nonce, &bytes]));
        bytes
    }

    /// The length of the whole reply, told by its head. An answer is as long as the reader expects, or it is none.
    pub(crate) fn len(head: &[u8; HEAD], answer: usize) -> Result<usize, Refusal> {
        let mut reader = Reader(head);
        reader.magic()?;
        let (kind, body) = (reader.u32()?, reader.u32()? as usize);
        let fits = if kind == 2 { body == answer } else { body <= SHORT };
        if fits { Ok(HEAD + body + CODE) } else { Err(Refusal::NotSyncbn) }
    }

    /// The reply, if it belongs to the job and to the greeting of that nonce. `bytes` has the length that [`Reply::len`] told.
    ///
    /// The inner error is what the other side says about the job or version: it proves nothing, since the other side is of
    /// another job.
    pub(crate) fn parse(bytes: &[u8], token: &JobToken, nonce: &[u8; 16]) -> Result<Self, Refusal> {
        let mut reader = Reader(bytes);
        reader.magic()?;
        let (kind, length) = (reader.u32()?, reader.u32()? as usize);
        let (said, code) = bytes.split_at(bytes.len().saturating_sub(CODE));
        let body = said.get(HEAD..).filter(|body| body.len() == length).ok_or(Refusal::NotSyncbn)?;
        if !token.proves(&[b"reply", nonce, said], code) {
            return Err(Refusal::OtherJob);
        }
        match kind {
            1 => Ok(Self::Welcome),
            2 => Ok(Self::Answer(body.to_vec())),
            3 => Refusal::parse(body).map(Self::Refused),
            _ => Err(Refusal::NotSyncbn),
        }
    }
}

impl Refusal {
    fn body(&self) -> Vec<u8> {
        let (tag, numbers) = match self {
            Self::NotSyncbn => (1_u32, vec![]),
            Self::Version(version) => (2, vec![u64::from(*version)]),
            Self::OtherJob => (3, vec![]),
            Self::OtherGroup => (4, vec![]),
            Self::WorldSize { got, expected } => (5, vec![*got, *expected]),
            Self::Rank(rank) => (6, vec![*rank]),
            Self::Replaced => (7, vec![]),
            Self::Missing(ranks) => (8, ranks.iter().take(LISTED).copied().collect()),
        };
        let numbers = numbers.iter().flat_map(|number| number.to_le_bytes());
        tag.to_le_bytes().into_iter().chain(numbers).collect()
    }

    fn parse(body: &[u8]) -> Result<Self, Self> {
        let mut reader = Reader(body);
        Ok(match reader.u32()? {
            2 => Self::Version(reader.u64()? as u32),
            3 => Self::OtherJob,
            4 => Self::OtherGroup,
            5 => Self::WorldSize { got: reader.u64()?, expected: reader.u64()? },
            6 => Self::Rank(reader.u64()?),
            7 => Self::Replaced,
            8 => Self::Missing(std::iter::from_fn(|| reader.u64().ok()).collect()),
            _ => Self::NotSyncbn,
        })
    }
}

/// Bytes that are taken from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Refusal::NotSyncbn)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn magic(&mut self) -> Result<(), Refusal> {
        if self.take()? != MAGIC {
            return Err(Refusal::NotSyncbn);
        }
        match self.u32()? {
            VERSION => Ok(()),
            other => Err(Refusal::Version(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GREETED: Greeting = Greeting {
        purpose: Purpose::Group,
        group: [3; 16],
        world_size: 5,
        rank: 4,
        host: 0,
        card: 4711,
        nonce: [9; 16],
    };

    fn greeting(token: &JobToken) -> [u8; GREETING] {
        GREETED.to_bytes(token).try_into().unwrap()
    }

    #[test]
    fn a_greeting_is_read_by_its_own_job_alone() {
        let ours = JobToken::of_secret("ours");
        assert_eq!(Greeting::parse(&greeting(&ours), &ours), Ok(GREETED));
        for other in [JobToken::default(), JobToken::of_secret("theirs"), JobToken::of_job("ours")] {
            assert_eq!(Greeting::parse(&greeting(&ours), &other), Err(Refusal::OtherJob));
        }
    }

    #[test]
    fn a_greeting_with_any_bit_changed_is_refused() {
        let token = JobToken::of_secret("ours");
        for bit in 0..8 * GREETING {
            let mut bytes = greeting(&token);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Greeting::parse(&bytes, &token).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_reply_belongs_to_its_greeting_and_job() {
        let token = JobToken::of_secret("ours");
        let replies = [
            Reply::Welcome,
            Reply::Answer(vec![7; 128]),
            Reply::Refused(Refusal::WorldSize { got: 2, expected: 3 }),
            Reply::Refused(Refusal::Missing(vec![1, 5])),
            Reply::Refused(Refusal::Replaced),
        ];
        for reply in replies {
            let bytes = reply.to_bytes(&token, &[1; 16]);
            assert_eq!(Reply::len(bytes.first_chunk().unwrap(), 128), Ok(bytes.len()));
            assert_eq!(Reply::parse(&bytes, &token, &[1; 16]), Ok(reply));
            assert_eq!(Reply::parse(&bytes, &token, &[2; 16]), Err(Refusal::OtherJob));
            assert_eq!(Reply::parse(&bytes, &JobToken::default(), &[1; 16]), Err(Refusal::OtherJob));
        }
    }

    #[test]
    fn an_answer_of_another_length_than_expected_is_none_before_it_is_read() {
        let bytes = Reply::Answer(vec![0; 128]).to_bytes(&JobToken::default(), &[0; 16]);
        assert_eq!(Reply::len(bytes.first_chunk().unwrap(), 127), Err(Refusal::NotSyncbn));
        let mut head: [u8; HEAD] = *bytes.first_chunk().unwrap();
        head[12] = 1; // a welcome
        head[16..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Reply::len(&head, 128), Err(Refusal::NotSyncbn));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..1000), tail in any::<[u8; GREETING]>()) {
            let token = JobToken::default();
            prop_assert!(Greeting::parse(&tail, &token).is_err());
            prop_assert!(Reply::parse(&bytes, &token, &[0; 16]).is_err());
            let mut spoken = b"syncbn\r\n\x02\0\0\0".to_vec();
            spoken.extend(bytes);
            prop_assert!(Reply::parse(&spoken, &token, &[0; 16]).is_err());
            if let Some(head) = spoken.first_chunk() {
                prop_assert!(Reply::len(head, 128).unwrap_or(0) <= HEAD + SHORT + CODE);
            }
            let _ = Refusal::parse(&spoken);
        }
    }
}
