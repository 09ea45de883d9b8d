//! Limits of blocks and of scratch.

/// The most channels of a block of columns.
pub(super) const MOST_CHANNELS_PER_BLOCK: usize = 256;
/// The most channels of a block of rows: a warp has one channel, and blocks of several channels have `SMALL` threads.
const MOST_ROWS: usize = SMALL / 32;
/// The most threads of a block that has several channels and shares none of them with another block.
pub(super) const SMALL: usize = 256;

/// The most channels of a block of a kernel that is compiled for columns, or for rows.
pub(crate) const fn most_channels_per_block(columns: bool) -> usize {
    if columns { MOST_CHANNELS_PER_BLOCK } else { MOST_ROWS }
}

/// The most partial sums, of `channels` channels over all blocks, and the most tickets that any pass needs.
pub(crate) fn most_partials(multiprocessors: usize, channels: usize) -> (usize, usize) {
    let tickets = 8 * multiprocessors;
    ((MOST_CHANNELS_PER_BLOCK * multiprocessors).min(channels.saturating_mul(4 * tickets)), tickets)
}
