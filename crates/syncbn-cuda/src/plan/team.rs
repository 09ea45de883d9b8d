//! Which threads and blocks are put to a tensor's vectors, so that the device is full and few partial sums are left.
//!
//! Deliberately not here: which vectors these are.

use super::limits::{SMALL, most_partials};
use super::matrix::Matrix;
use crate::kernel::Tuning;

/// What one kernel's threads are put to.
#[derive(Debug)]
pub(super) struct Team {
    pub(super) threads: usize,
    pub(super) slots: usize,
    pub(super) members: usize,
    pub(super) pack: usize,
    pub(super) groups: usize,
    pub(super) splits: usize,
    /// How well it fills the device.
    score: f64,
}

impl Team {
    /// The threads that add up one channel of columns: of one warp.
    pub(super) fn shares(&self) -> usize {
        (1..=5)
            .map(|power| 1 << power)
            .take_while(|shares| shares * self.pack <= self.threads)
            .last()
            .unwrap_or(1)
    }
}

impl Matrix {
    /// Puts threads to the lanes of a device of so many multiprocessors.
    pub(super) fn team(&self, tuning: Tuning, multiprocessors: usize) -> Team {
        let vectors = self.runs * self.segment;
        // No more threads than get a few loads each: as many as are in flight at once cost no more time than one.
        let wanted =
            vectors.div_ceil(if self.columns { tuning.unroll.max(4) } else { tuning.unroll.min(4) }).max(1);
        let most = tuning.threads;
        let small = most.min(SMALL);
        if self.pack == 1 && wanted <= small / 2 {
            // Whole channels to a block: none has to wait for another.
            let members = wanted.next_power_of_two().max(if self.columns { 8 } else { 32 });
            let slots = small / members;
            let groups = self.lanes.div_ceil(slots);
            return Team {
                threads: members * slots,
                slots,
                members,
                pack: slots,
                groups,
                splits: 1,
                score: 0.0,
            };
        }
        let groups = self.lanes.div_ceil(self.slots);
        let room = multiprocessors * tuning.blocks * most;
        let (partials, tickets) = most_partials(multiprocessors, groups * self.pack);
        let team = |threads: usize| {
            let members = (threads / self.slots).min(wanted.next_power_of_two());
            let useful = vectors
                .div_ceil(members * tuning.unroll.max(4))
                .clamp(1, partials / (groups * self.pack).min(partials));
            let (splits, score) =
                best_splits(groups, room / threads, if groups > tickets { 1 } else { useful });
            Team { threads, slots: self.slots, members, pack: self.pack, groups, splits, score }
        };
        let least = self.slots.max(self.pack).max(96);
        let enough = wanted.saturating_mul(self.slots).max(least);
        // The next smaller size may be enough; at most that is tried too.
        let sizes = [most, most / 2, most / 4, most / 8].into_iter().filter(|&size| size >= least);
        let sizes = sizes.filter(|&size| size < 2 * enough);
        let teams: Vec<Team> = sizes.map(team).collect();
        let best = teams.iter().map(|team| team.score).fold(f64::MIN, f64::max);
        // The largest blocks have the fewest partial sums.
        teams.into_iter().find(|team| team.score >= nearly(best)).unwrap_or_else(|| team(most))
    }
}

/// How many blocks a group is split into, and how well that fills a device with room for `room` blocks at a time: the last
/// round of blocks may leave it empty, and each round has its own beginning and end.
#[expect(clippy::cast_sign_loss, reason = "a number of splits is at least 1")]
pub(super) fn best_splits(groups: usize, room: usize, most: usize) -> (usize, f64) {
    let most = most.min((4 * room / groups).max(1));
    let rounds = |splits: usize| (groups * splits).div_ceil(room);
    let full = |rounds: usize| (rounds * room) as f64;
    let cost = |rounds: usize| 0.05 * (rounds - 1) as f64;
    let score = |splits| (groups * splits) as f64 / full(rounds(splits)) - cost(rounds(splits));
    // In so many rounds, more blocks are better.
    let fullest = |rounds: usize| (rounds * room / groups).clamp(1, most);
    let all = rounds(1)..=rounds(most);
    let best = all.clone().map(|rounds| score(fullest(rounds))).fold(f64::MIN, f64::max);
    // The fewest splits that are nearly as good have the fewest partial sums.
    let enough = nearly(best);
    let fewest = |rounds| ((enough + cost(rounds)) * full(rounds) / groups as f64).ceil().max(1.0) as usize;
    let splits =
        all.map(|rounds| fewest(rounds).min(fullest(rounds))).find(|&splits| score(splits) >= enough);
    let splits = splits.unwrap_or(most);
    (splits, score(splits))
}

/// What is as good as the best score, or nearly; rounding aside.
pub(super) fn nearly(best: f64) -> f64 {
    best - 0.04 * best.abs() - 1e-9
}
