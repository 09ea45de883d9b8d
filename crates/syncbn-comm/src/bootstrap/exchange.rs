//! Rank 0's bytes, to every rank, over TCP.
//!
//! Every rank says who it is; once all have come, rank 0 answers each with the bytes. Whoever gets them knows that all
//! ranks were there.
//!
//! Deliberately not here: secrecy. Ranks trust their network, as they do with every sum that follows.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use super::{BootstrapError, Place};

/// What a rank says first: this, its rank, and the world's size.
const GREETING: [u8; 8] = *b"syncbn 1";
/// How long to wait before knocking again.
const PAUSE: Duration = Duration::from_millis(20);
/// How long whoever knocks may take to say who it is, while others wait behind.
const COURTESY: Duration = Duration::from_secs(1);

/// Gives rank 0's bytes to all ranks, and returns them. Every rank calls it; `bytes` are asked for on rank 0 alone.
///
/// It returns once all ranks have come, or after `timeout`, with the ranks that have not where that is known.
pub fn share<const N: usize, E: From<BootstrapError>>(
    place: &Place,
    timeout: Duration,
    bytes: impl FnOnce() -> Result<[u8; N], E>,
) -> Result<[u8; N], E> {
    if place.rank != 0 {
        return Ok(fetch(place, timeout)?);
    }
    let bytes = bytes()?;
    give(place, timeout, &bytes)?;
    Ok(bytes)
}

fn give(place: &Place, timeout: Duration, bytes: &[u8]) -> Result<(), BootstrapError> {
    let others = place.world_size.get() - 1;
    if others == 0 {
        return Ok(());
    }
    let port = place.meeting.port;
    let cannot = |source| BootstrapError::Listen { port, source };
    let listener = TcpListener::bind(("0.0.0.0", port)).map_err(cannot)?;
    listener.set_nonblocking(true).map_err(cannot)?;
    let began = Instant::now();
    let mut ranks: Vec<Option<TcpStream>> = (0..others).map(|_| None).collect();
    while ranks.iter().any(Option::is_none) {
        let Some(left) = timeout.checked_sub(began.elapsed()) else {
            let missing = (1..).zip(&ranks).filter(|(_, stream)| stream.is_none()).map(|(rank, _)| rank);
            let (missing, world_size) = (missing.collect(), place.world_size.get());
            return Err(BootstrapError::Missing { missing, world_size, timeout });
        };
        match listener.accept() {
            Ok((mut stream, _)) => {
                // Whoever does not greet is not one of us, and is left at the door.
                if let Ok((rank, world_size)) = greeted(&mut stream) {
                    seat(place, &mut ranks, rank, world_size, stream)?;
                }
            }
            Err(_) => thread::sleep(PAUSE.min(left)),
        }
    }
    // A rank that goes now is missed at the first sum; the others are not kept from theirs.
    for stream in ranks.iter_mut().flatten() {
        let _ = stream.write_all(bytes);
    }
    Ok(())
}

fn greeted(stream: &mut TcpStream) -> io::Result<(usize, usize)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(COURTESY))?;
    let mut words = [[0; 8]; 3];
    stream.read_exact(words.as_flattened_mut())?;
    let number = |word| usize::try_from(u64::from_le_bytes(word)).map_err(io::Error::other);
    if words[0] == GREETING {
        Ok((number(words[1])?, number(words[2])?))
    } else {
        Err(io::Error::other("no greeting"))
    }
}

fn seat(
    place: &Place,
    ranks: &mut [Option<TcpStream>],
    rank: usize,
    got: usize,
    stream: TcpStream,
) -> Result<(), BootstrapError> {
    let expected = place.world_size.get();
    let seat = rank.checked_sub(1).and_then(|at| ranks.get_mut(at)).filter(|seat| seat.is_none());
    match seat {
        Some(seat) if got == expected => *seat = Some(stream),
        _ => return Err(BootstrapError::Stranger { rank, got, expected }),
    }
    Ok(())
}

fn fetch<const N: usize>(place: &Place, timeout: Duration) -> Result<[u8; N], BootstrapError> {
    let began = Instant::now();
    loop {
        let left = timeout.saturating_sub(began.elapsed());
        let reason = match ask(place, left.max(PAUSE)) {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error.to_string(),
        };
        if left.is_zero() {
            let (rank, world_size) = (place.rank, place.world_size.get());
            let meeting = place.meeting.clone();
            return Err(BootstrapError::NoAnswer { rank, world_size, meeting, timeout, reason });
        }
        thread::sleep(PAUSE.min(left));
    }
}

fn ask<const N: usize>(place: &Place, left: Duration) -> io::Result<[u8; N]> {
    let meeting = &place.meeting;
    let address = (meeting.host.as_str(), meeting.port).to_socket_addrs()?.next();
    let address = address.ok_or_else(|| io::Error::other("the host has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, left)?;
    stream.set_read_timeout(Some(left))?;
    let [rank, world_size] = [place.rank, place.world_size.get()].map(|number| (number as u64).to_le_bytes());
    stream.write_all([GREETING, rank, world_size].as_flattened())?;
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
