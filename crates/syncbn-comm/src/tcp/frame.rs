//! The messages between two ranks. Pure functions of bytes.
//!
//! A frame is its length (4 bytes, at most [`LONGEST`]) and that many bytes: a kind, and what belongs to it. A frame with
//! the collective that a rank is in is followed by the rank's numbers. The reader knows their count from its own collective, and
//! does not use a count that was sent. Numbers are little-endian.
//!
//! Deliberately not here: connections, and what the reader does about a frame.

use std::sync::Arc;
use std::time::Duration;

use syncbn_core::{CollectiveId, CollectiveKind, CommError, CommErrorKind, Pass};

use crate::failure::{Places, Step};

/// The most bytes of a frame after its length.
pub(super) const LONGEST: usize = 64 * 1024;
/// The most bytes of a label, and of any other text.
pub(super) const LONGEST_TEXT: usize = 16 * 1024;

/// A message of a rank.
#[derive(Debug)]
pub(super) enum Frame {
    /// It is in this collective; its numbers follow.
    Step(Step),
    /// It leaves the group.
    Leave { panicked: bool },
    /// The group has failed, with this error.
    Poison(Poison),
}

/// The first failure of a group, as the sender received or found it.
#[derive(Debug)]
pub(super) struct Poison {
    /// How many collectives the sender has completed: whether it was still in the one that its peers are in.
    pub(super) completed: u64,
    pub(super) origin: CommError,
    pub(super) apart: Option<Places>,
}

/// The bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of {0} bytes, expected 1 to {LONGEST}")]
    Length(usize),
    #[error("a frame of an unknown kind, or not of its kind's form")]
    Form,
    #[error("a text of {0} bytes, expected at most {LONGEST_TEXT}")]
    Text(usize),
    #[error("a collective of a kind that this version does not know")]
    Kind,
}

impl Frame {
    /// The frame that the bytes begin with, and its length in all; `None` as long as some of it is missing.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, FrameError> {
        let Some(length) = bytes.first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 || length > LONGEST {
            return Err(FrameError::Length(length));
        }
        let Some(body) = bytes.get(4..4 + length) else { return Ok(None) };
        let mut reader = Reader(body);
        let frame = match reader.u8()? {
            1 => Self::Step(Step::AllReduce(reader.id()?)),
            2 => Self::Step(Step::Split),
            3 => Self::Leave { panicked: reader.bool()? },
            4 => Self::Poison(Poison {
                completed: reader.u64()?,
                origin: reader.error()?,
                apart: reader.apart()?,
            }),
            _ => return Err(FrameError::Form),
        };
        if reader.0.is_empty() { Ok(Some((frame, 4 + length))) } else { Err(FrameError::Form) }
    }

    /// The frame's bytes, after what is in `bytes` already; on an error there is no more than before.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) -> Result<(), FrameError> {
        let from = bytes.len();
        self.write_from(from, bytes).inspect_err(|_| bytes.truncate(from))
    }

    fn write_from(&self, from: usize, bytes: &mut Vec<u8>) -> Result<(), FrameError> {
        bytes.extend([0; 4]);
        let mut writer = Writer(bytes);
        match self {
            Self::Step(step) => writer.step(step)?,
            Self::Leave { panicked } => writer.u8(3).u8((*panicked).into()),
            Self::Poison(Poison { completed, origin, apart }) => {
                writer.u8(4).u64(*completed).error(origin)?;
                writer.apart(apart.as_ref(), from + 4 + LONGEST)?
            }
        };
        let length = bytes.len() - from - 4;
        if length > LONGEST {
            return Err(FrameError::Length(length));
        }
        bytes[from..from + 4].copy_from_slice(&(length as u32).to_le_bytes());
        Ok(())
    }
}

/// The text of another process's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Told(String);

struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> Result<&mut Self, FrameError> {
        if text.len() > LONGEST_TEXT {
            return Err(FrameError::Text(text.len()));
        }
        self.u64(text.len() as u64).0.extend(text.as_bytes());
        Ok(self)
    }

    /// As much of it as a frame can hold.
    fn cut(&mut self, text: &str) -> Result<&mut Self, FrameError> {
        let longest = text.len().min(LONGEST_TEXT);
        let end = (0..=longest).rev().find(|&end| text.is_char_boundary(end));
        self.text(&text[..end.unwrap_or(0)])
    }

    fn duration(&mut self, value: Duration) -> &mut Self {
        self.u64(value.as_secs()).u64(value.subsec_nanos().into())
    }

    fn id(&mut self, id: &CollectiveId) -> Result<&mut Self, FrameError> {
        let kind = match id.kind {
            CollectiveKind::Pass(Pass::Forward) => 1,
            CollectiveKind::Pass(Pass::Backward) => 2,
            CollectiveKind::AllReduce => 3,
            _ => return Err(FrameError::Kind),
        };
        self.u8(kind).u64(id.length as u64).u64(id.ordinal).u64(id.use_number).u64(id.step).u64(id.settings);
        self.text(&id.label)
    }

    fn step(&mut self, step: &Step) -> Result<&mut Self, FrameError> {
        match step {
            Step::AllReduce(id) => self.u8(1).id(id),
            Step::Split => Ok(self.u8(2)),
        }
    }

    fn error(&mut self, error: &CommError) -> Result<&mut Self, FrameError> {
        self.u64(error.rank as u64).u64(error.world_size as u64);
        match &error.call {
            // One that could not be sent may be what is reported.
            Some(id) if id.label.len() <= LONGEST_TEXT => self.u8(1).id(id)?,
            _ => self.u8(0),
        };
        match &error.kind {
            CommErrorKind::Left { rank, panicked } => Ok(self.u8(1).u64(*rank as u64).u8((*panicked).into())),
            CommErrorKind::Timeout { missing, timeout } => {
                self.u8(2).duration(*timeout);
                // More would not fit into a frame.
                let missing = missing.get(..1000).unwrap_or(missing);
                Ok(missing
                    .iter()
                    .fold(self.u64(missing.len() as u64), |writer, rank| writer.u64(*rank as u64)))
            }
            CommErrorKind::Unfinished { timeout } => Ok(self.u8(3).duration(*timeout)),
            // Where they were is in the places.
            CommErrorKind::OutOfStep { .. } => Ok(self.u8(4)),
            CommErrorKind::Disagree(what) => self.u8(5).cut(what),
            CommErrorKind::MessageLength { expected, got } => {
                Ok(self.u8(6).u64(*expected as u64).u64(*got as u64))
            }
            CommErrorKind::Unsent(cause) => self.u8(7).cut(&cause.to_string()),
            other => self.u8(8).cut(&other.to_string()),
        }
    }

    /// As many of the places as fit before `end`.
    fn apart(&mut self, apart: Option<&Places>, end: usize) -> Result<&mut Self, FrameError> {
        let Some(apart) = apart else { return Ok(self) };
        for (rank, step) in apart {
            let before = self.0.len();
            self.u64(*rank as u64).step(step)?;
            if self.0.len() > end {
                self.0.truncate(before);
                break;
            }
        }
        Ok(self)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(FrameError::Form)?;
        self.0 = rest;
        Ok(*first)
    }

    fn u8(&mut self) -> Result<u8, FrameError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn bool(&mut self) -> Result<bool, FrameError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError::Form),
        }
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        self.take().map(u64::from_le_bytes)
    }

    fn usize(&mut self) -> Result<usize, FrameError> {
        usize::try_from(self.u64()?).map_err(|_| FrameError::Form)
    }

    fn text(&mut self) -> Result<&str, FrameError> {
        let length = self.usize()?;
        if length > LONGEST_TEXT {
            return Err(FrameError::Text(length));
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(FrameError::Form)?;
        self.0 = rest;
        std::str::from_utf8(text).map_err(|_| FrameError::Form)
    }

    fn duration(&mut self) -> Result<Duration, FrameError> {
        let (seconds, nanos) = (self.u64()?, self.u64()?);
        if nanos < 1_000_000_000 { Ok(Duration::new(seconds, nanos as u32)) } else { Err(FrameError::Form) }
    }

    fn id(&mut self) -> Result<CollectiveId, FrameError> {
        let kind = match self.u8()? {
            1 => CollectiveKind::Pass(Pass::Forward),
            2 => CollectiveKind::Pass(Pass::Backward),
            3 => CollectiveKind::AllReduce,
            _ => return Err(FrameError::Kind),
        };
        let length = self.usize()?;
        let [ordinal, use_number, step, settings] = [self.u64()?, self.u64()?, self.u64()?, self.u64()?];
        let id = CollectiveId::new(self.text()?, length).with_kind(kind);
        Ok(id.with_layer(ordinal, settings).with_use(use_number, step))
    }

    fn step(&mut self) -> Result<Step, FrameError> {
        match self.u8()? {
            1 => Ok(Step::AllReduce(self.id()?)),
            2 => Ok(Step::Split),
            _ => Err(FrameError::Form),
        }
    }

    fn error(&mut self) -> Result<CommError, FrameError> {
        let (rank, world_size) = (self.usize()?, self.usize()?);
        let call = if self.bool()? { Some(self.id()?) } else { None };
        let kind = match self.u8()? {
            1 => CommErrorKind::Left { rank: self.usize()?, panicked: self.bool()? },
            2 => {
                let timeout = self.duration()?;
                let missing = (0..self.usize()?).map(|_| self.usize()).collect::<Result<_, _>>()?;
                CommErrorKind::Timeout { missing, timeout }
            }
            3 => CommErrorKind::Unfinished { timeout: self.duration()? },
            4 => CommErrorKind::OutOfStep { others: Vec::new() },
            5 => CommErrorKind::Disagree(self.text()?.to_owned()),
            6 => CommErrorKind::MessageLength { expected: self.usize()?, got: self.usize()? },
            7 => CommErrorKind::Unsent(Arc::new(Told(self.text()?.to_owned()))),
            8 => CommErrorKind::Transport(Arc::new(Told(self.text()?.to_owned()))),
            _ => return Err(FrameError::Form),
        };
        Ok(CommError { rank, world_size, call, late: false, kind })
    }

    /// The rest: a place for each rank.
    fn apart(&mut self) -> Result<Option<Places>, FrameError> {
        let mut places = Places::new();
        while !self.0.is_empty() {
            places.push((self.usize()?, self.step()?));
        }
        Ok(if places.is_empty() { None } else { Some(places) })
    }
}

#[cfg(test)]
mod tests;
