//! Geometric means over the tensors of one operation, type, layout and size.
//!
//! Deliberately not here: means over different types or sizes, which would hide where it fails.

use super::{Comparison, Line};

/// From this size on a tensor is large: the memory's speed decides, not the launches.
pub(super) const LARGE: f64 = 10e6;

/// Lines that may be averaged.
pub(super) struct Group<'a> {
    pub(super) op: &'a str,
    pub(super) dtype: &'a str,
    pub(super) layout: &'a str,
    pub(super) large: bool,
    pub(super) lines: Vec<&'a Line>,
}

impl Group<'_> {
    /// The geometric mean of a figure over the lines that have it, and how many those are.
    pub(super) fn mean(&self, figure: impl Fn(&Line) -> Option<f64>) -> Option<(f64, usize)> {
        geometric_mean(self.lines.iter().filter_map(|line| figure(line)))
    }

    /// The lines that everyone has measured who has measured any: means over them can be compared.
    pub(super) fn common(mut self) -> Self {
        let who = |line: &Line| line.by.keys().cloned().collect::<Vec<_>>();
        let mut everyone: Vec<_> = self.lines.iter().flat_map(|line| who(line)).collect();
        everyone.sort();
        everyone.dedup();
        self.lines.retain(|line| who(line) == everyone);
        self
    }
}

/// The groups of a comparison, in the order of its lines, large tensors first.
pub(super) fn groups(comparison: &Comparison) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for line in &comparison.lines {
        let what = &line.what;
        let (op, dtype, layout) = (what.op.as_str(), what.dtype.as_str(), what.layout.as_str());
        let large = what.bytes() >= LARGE;
        let same = |group: &&mut Group<'_>| {
            (group.op, group.dtype, group.layout, group.large) == (op, dtype, layout, large)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.lines.push(line),
            None => groups.push(Group { op, dtype, layout, large, lines: vec![line] }),
        }
    }
    groups.sort_by_key(|group| !group.large);
    groups
}

/// The geometric mean, and of how many numbers; `None` of none.
pub(super) fn geometric_mean(numbers: impl Iterator<Item = f64>) -> Option<(f64, usize)> {
    let (sum, count) = numbers.fold((0.0, 0), |(sum, count), number| (sum + number.ln(), count + 1));
    (count > 0).then(|| ((sum / count as f64).exp(), count))
}
