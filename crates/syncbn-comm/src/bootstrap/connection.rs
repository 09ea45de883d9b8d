//! Connections without blocking: what can be read or written now is, and one wait serves them all.
//!
//! Deliberately not here: the messages, and how long they may take.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Protocol, Socket, Type};

use crate::deadline::Deadline;

/// How long to wait before something is tried again.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);

/// Waits for all of a process's connections at once.
pub(crate) struct Net {
    poll: Poll,
    events: Events,
    next: usize,
}

impl Net {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { poll: Poll::new()?, events: Events::with_capacity(256), next: 0 })
    }

    /// Waits until something is ready, for [`PAUSE`], or to the deadline, and returns what is ready.
    pub(crate) fn wait(&mut self, deadline: Deadline) -> io::Result<Vec<Token>> {
        match self.poll.poll(&mut self.events, Some(deadline.left().min(PAUSE))) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        Ok(self.events.iter().map(mio::event::Event::token).collect())
    }

    pub(crate) fn add(&mut self, source: &mut impl mio::event::Source) -> io::Result<Token> {
        let token = Token(self.next);
        self.next += 1;
        self.poll.registry().register(source, token, Interest::READABLE | Interest::WRITABLE)?;
        Ok(token)
    }

    pub(crate) fn remove(&self, source: &mut impl mio::event::Source) -> io::Result<()> {
        self.poll.registry().deregister(source)
    }
}

/// Listens at a port of every address of this machine, in both families.
pub(crate) fn listen(port: u16) -> io::Result<Vec<TcpListener>> {
    let first = listen_in(Domain::IPV6, port);
    let taken = match &first {
        Ok(listener) => listener.local_addr()?.port(),
        Err(error) if error.kind() == ErrorKind::AddrInUse => return first.map(|listener| vec![listener]),
        // A machine without IPv6.
        Err(_) => port,
    };
    match listen_in(Domain::IPV4, taken) {
        Ok(second) => Ok(first.into_iter().chain([second]).collect()),
        Err(error) if error.kind() == ErrorKind::AddrInUse || first.is_err() => Err(error),
        // A machine without IPv4.
        Err(_) => first.map(|listener| vec![listener]),
    }
}

/// Listens at some port, the same in both families.
pub(crate) fn listen_somewhere() -> io::Result<(Vec<TcpListener>, u16)> {
    // A port that is free in one family may be taken in the other.
    let mut tries = 0..16;
    loop {
        match listen(0) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && tries.next().is_some() => {}
            Err(error) => return Err(error),
            Ok(listeners) => {
                let port = listeners.first().ok_or(ErrorKind::Unsupported)?.local_addr()?.port();
                return Ok((listeners, port));
            }
        }
    }
}

fn listen_in(family: Domain, port: u16) -> io::Result<TcpListener> {
    let socket = Socket::new(family, Type::STREAM, Some(Protocol::TCP))?;
    let address = if family == Domain::IPV6 {
        socket.set_only_v6(true)?;
        SocketAddr::from(([0_u16; 8], port))
    } else {
        SocketAddr::from(([0_u8; 4], port))
    };
    // A port that an earlier job has left may still be in the system's memory. On Windows the option means something else.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(socket.into()))
}

/// A connection, what has come over it, and what is still to be sent.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, incoming: Vec::new(), outgoing: Vec::new() }
    }

    /// Whether a connection that was begun stands by now.
    pub(crate) fn is_open(&self) -> io::Result<bool> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        match self.stream.peer_addr() {
            // A port of this machine at which nobody listens can be connected to itself.
            Ok(peer) if self.stream.local_addr()? == peer => Err(ErrorKind::ConnectionRefused.into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the other side has not closed it, as far as is known.
    pub(crate) fn is_alive(&self) -> bool {
        match self.stream.peek(&mut [0]) {
            Ok(read) => read > 0,
            Err(error) => matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
        }
    }

    /// Reads what is there, up to `len` bytes in all, and returns them once they all are.
    pub(crate) fn read(&mut self, len: usize) -> io::Result<Option<&[u8]>> {
        let mut chunk = [0; 4096];
        while self.incoming.len() < len {
            let space = (len - self.incoming.len()).min(chunk.len());
            match self.stream.read(&mut chunk[..space]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.incoming.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(self.incoming.get(..len))
    }

    /// Forgets what has been read.
    pub(crate) fn taken(&mut self) {
        self.incoming.clear();
    }

    /// Sends `bytes`, now or when there is room.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<bool> {
        self.outgoing.extend_from_slice(bytes);
        self.flush()
    }

    /// Sends what can be sent; true once all is.
    pub(crate) fn flush(&mut self) -> io::Result<bool> {
        while !self.outgoing.is_empty() {
            match self.stream.write(&self.outgoing) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => drop(self.outgoing.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}
