//! What blocks and scratch have room for.

/// The most channels of a block; tile.cuh is told.
pub(super) const MOST_PACK: usize = 256;
/// The same of rows: a warp has one channel, and many channels are put into blocks of 256 threads only.
const MOST_ROWS: usize = SMALL / 32;
/// The most threads of a block that has several channels to itself.
pub(super) const SMALL: usize = 256;

/// The most channels of a block.
pub(crate) const fn most_pack(columns: bool) -> usize {
    if columns { MOST_PACK } else { MOST_ROWS }
}

/// The most partial sums, of `channels` channels over all splits, and tickets that any pass needs.
pub(crate) fn most_partials(multiprocessors: usize, channels: usize) -> (usize, usize) {
    let tickets = 8 * multiprocessors;
    ((MOST_PACK * multiprocessors).min(channels.saturating_mul(4 * tickets)), tickets)
}
