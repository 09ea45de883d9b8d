//! Bytes of every kind, to the parser of TCP frames: it never panics, takes no memory beyond its bound, and what it reads is what
//! was written.
//!
//! `SYNCBN_CASES` multiplies the number of inputs, which is 300,000: with 40 it is twelve million.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]
#![allow(clippy::cast_sign_loss, reason = "a number of cases is not negative")]

use cap::Cap;
use syncbn_comm::tcp::reparse;

/// An allocation beyond its limit ends the program.
#[global_allocator]
static MEMORY: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);

/// The longest frame, of the shortest places, as they lie in memory.
const BOUND: usize = 3 << 20;

#[test]
fn no_bytes_make_the_parser_panic_or_take_memory_beyond_its_bound() {
    let cases: f64 = std::env::var("SYNCBN_CASES").map_or(1.0, |times| times.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(18);
    let mut bytes = Vec::with_capacity(1 << 17);
    let mut read = 0_usize;
    for case in 0..(300_000.0 * cases) as usize {
        draw(&mut random, &mut bytes, case);
        MEMORY.set_limit(MEMORY.allocated() + BOUND).unwrap();
        let again = reparse(&bytes);
        MEMORY.set_limit(usize::MAX).unwrap();
        if let Some(again) = again {
            read += 1;
            assert_eq!(again, bytes[..again.len()], "case {case}");
        }
    }
    assert!(read > 1000, "only {read} inputs were frames: the drawing has lost its point");
}

/// Mostly the form of a frame, so that the parser is not done with the first byte.
fn draw(random: &mut fastrand::Rng, bytes: &mut Vec<u8>, case: usize) {
    bytes.clear();
    bytes.extend([0; 4]);
    // Some are about as long as they can be.
    let longest = if case.is_multiple_of(1000) { 60 * 1024 } else { 300 };
    match random.u8(..8) {
        0 => bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(longest)),
        1 => bytes.extend([3, random.u8(..3)]),
        2 => {
            bytes.push(1);
            step(random, bytes);
        }
        _ => {
            poison(random, bytes);
            let long = longest > 300;
            while bytes.len() < longest && (long || random.u8(..8) > 0) {
                number(random, bytes);
                // The shortest places take the most memory for their bytes.
                if long { bytes.push(2) } else { step(random, bytes) }
            }
        }
    }
    let length = if random.u8(..8) == 0 { random.u32(..) } else { bytes.len() as u32 - 4 };
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    // Sometimes one byte is another, or the end is missing.
    if random.u8(..4) == 0 {
        let at = random.usize(4..bytes.len());
        bytes[at] = random.u8(..);
    }
    if random.u8(..16) == 0 {
        bytes.truncate(random.usize(..bytes.len()));
    }
}

fn poison(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    bytes.push(4);
    (0..3).for_each(|_| number(random, bytes));
    bytes.push(random.u8(..2));
    if bytes.last() == Some(&1) {
        id(random, bytes);
    }
    let kind = random.u8(1..9);
    bytes.push(kind);
    match kind {
        1 => {
            number(random, bytes);
            bytes.push(random.u8(..2));
        }
        2 => {
            (0..2).for_each(|_| number(random, bytes));
            let ranks = random.u64(..5);
            bytes.extend(ranks.to_le_bytes());
            (0..ranks).for_each(|_| number(random, bytes));
        }
        3 | 6 => (0..2).for_each(|_| number(random, bytes)),
        4 => {}
        _ => text(random, bytes),
    }
}

fn step(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    let tag = random.u8(1..3);
    bytes.push(tag);
    if tag == 1 {
        id(random, bytes);
    }
}

fn id(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    bytes.push(random.u8(1..4));
    (0..5).for_each(|_| number(random, bytes));
    text(random, bytes);
}

fn text(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    let length = random.u64(..20);
    let told = if random.u8(..16) == 0 { 1 << random.u8(..64) } else { length };
    bytes.extend(told.to_le_bytes());
    bytes.extend(std::iter::repeat_with(|| random.u8(32..128)).take(length as usize));
}

fn number(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    let number = if random.bool() { random.u64(..8) } else { random.u64(..) >> random.u8(..64) };
    bytes.extend(number.to_le_bytes());
}
