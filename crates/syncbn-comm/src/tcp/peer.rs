//! One peer: the connection to it, what was received from it, and how much of this rank's message was sent to it.
//!
//! No call blocks. Memory is allocated for what this rank expects, never for a length that a peer sends.
//!
//! Deliberately not here: other peers, and what the group does about a message.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use mio::net::TcpStream;
use socket2::SockRef;

use super::frame::{Frame, FrameError, Poison};
use crate::failure::Step;

/// How many bytes are read at once, at least.
const CHUNK: usize = 16 * 1024;

pub(super) struct Peer {
    pub(super) stream: TcpStream,
    inbox: Inbox,
    /// The collective that it is in, once its frame has come.
    pub(super) step: Option<Step>,
    /// Whether all its numbers for that collective have come.
    arrived: bool,
    /// How many bytes of this rank's message have been sent to it.
    sent: usize,
    /// Set once it has left the group: whether it panicked.
    pub(super) gone: Option<bool>,
}

/// A message that ends the group.
pub(super) enum Ending {
    Poison(Poison),
    /// Bytes that are no frame.
    Invalid(FrameError),
}

impl Peer {
    pub(super) fn new(stream: TcpStream) -> Self {
        let inbox = Inbox { buffer: vec![0; CHUNK], start: 0, end: 0, closed: false };
        Self { stream, inbox, step: None, arrived: false, sent: 0, gone: None }
    }

    /// Sends as much of the message as there is room for.
    pub(super) fn push(&mut self, message: &[u8]) {
        while self.gone.is_none() && self.sent < message.len() {
            match self.stream.write(&message[self.sent..]) {
                Ok(sent) => self.sent += sent,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // It is gone. Its last frame may still be unread, and give the reason.
                Err(_) => self.sent = message.len(),
            }
        }
    }

    /// Whether the whole message was sent, or cannot be any more.
    pub(super) fn is_sent(&self, message: &[u8]) -> bool {
        self.gone.is_some() || self.sent == message.len()
    }

    /// Reads which collective the peer is in, if its frame has come.
    pub(super) fn read_step(&mut self) -> Result<(), Ending> {
        while self.step.is_none() && self.gone.is_none() {
            match Frame::parse(self.inbox.bytes()).map_err(Ending::Invalid)? {
                Some((frame, length)) => {
                    self.inbox.take(length);
                    match frame {
                        Frame::Step(step) => self.step = Some(step),
                        Frame::Leave { panicked } => self.gone = Some(panicked),
                        Frame::Poison(poison) => return Err(Ending::Poison(poison)),
                    }
                }
                None if self.inbox.closed => self.gone = Some(false),
                None if self.inbox.more(&mut self.stream) => {}
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads the frame after its numbers: the peer may have failed in this collective, which `completed` others came before.
    pub(super) fn read_failure(&mut self, size: usize, completed: u64) -> Result<(), Ending> {
        while self.arrived {
            match Frame::parse(self.inbox.bytes().get(size..).unwrap_or_default()) {
                Ok(Some((Frame::Poison(poison), _))) if poison.completed == completed => {
                    return Err(Ending::Poison(poison));
                }
                Ok(None) if !self.inbox.closed && self.inbox.more(&mut self.stream) => {}
                // Anything else belongs to the next collective.
                _ => return Ok(()),
            }
        }
        Ok(())
    }

    /// Reads the numbers that follow; `size` is how many bytes this rank expects.
    pub(super) fn receive(&mut self, size: usize) {
        if self.step.is_some() && !self.arrived && self.gone.is_none() {
            self.arrived = self.inbox.fill(&mut self.stream, size);
            if !self.arrived && self.inbox.closed {
                self.gone = Some(false);
            }
        }
    }

    pub(super) fn has_arrived(&self) -> bool {
        self.arrived
    }

    /// The numbers that have arrived.
    pub(super) fn numbers(&self, size: usize) -> &[u8] {
        self.inbox.bytes().get(..size).unwrap_or_default()
    }

    /// Makes ready for the next collective.
    pub(super) fn next(&mut self, size: usize) {
        self.inbox.take(size);
        self.step = None;
        self.arrived = false;
        self.sent = 0;
    }

    /// Sends a last frame, after the rest of the message if a part of it was sent; nothing more is sent or read.
    ///
    /// A peer that does not read now gets it when it does, within `timeout`. This call does not wait for it.
    pub(super) fn send_last(&mut self, message: &[u8], frame: &[u8], timeout: Duration) {
        self.push(message);
        if self.gone.is_some() {
            return;
        }
        let rest = if self.sent == 0 { &[] } else { &message[self.sent..] };
        let bytes = [rest, frame].concat();
        let sent = self.stream.write(&bytes).unwrap_or(0);
        if sent == bytes.len() || self.send_later(bytes[sent..].to_vec(), timeout).is_err() {
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Sends the rest from a thread of its own, which ends when it is sent, the peer is gone, or reads nothing for too long.
    fn send_later(&self, rest: Vec<u8>, timeout: Duration) -> io::Result<()> {
        let stream: std::net::TcpStream = SockRef::from(&self.stream).try_clone()?.into();
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
        let send = move || {
            // If it cannot be sent, the peer finds the connection closed, and that this rank has left.
            let _ = (&stream).write_all(&rest);
            let _ = stream.shutdown(Shutdown::Write);
        };
        thread::Builder::new().name("syncbn last frame".into()).spawn(send).map(drop)
    }
}

/// Bytes that were received and not used yet.
struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    closed: bool,
}

impl Inbox {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn take(&mut self, length: usize) {
        self.start = self.end.min(self.start + length);
    }

    /// Reads until `wanted` bytes are there; whether they are.
    fn fill(&mut self, stream: &mut TcpStream, wanted: usize) -> bool {
        self.make_room(wanted);
        while self.end - self.start < wanted && !self.closed {
            match stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => self.closed = true,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => self.closed = true,
            }
        }
        self.end - self.start >= wanted
    }

    /// Reads more than is there; whether more has come, or the end.
    fn more(&mut self, stream: &mut TcpStream) -> bool {
        self.fill(stream, self.bytes().len() + 1) || self.closed
    }

    fn make_room(&mut self, wanted: usize) {
        if self.start + wanted.max(CHUNK) > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if wanted > self.buffer.len() {
            self.buffer.resize(wanted.next_multiple_of(CHUNK), 0);
        }
    }
}
