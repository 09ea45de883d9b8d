//! The sum of all parameters' gradients over the ranks, which any data-parallel trainer has.
//!
//! The sum is formed on rank 0, in the order of the ranks and in f64, so that every rank and every run gets the same bits.
//!
//! Deliberately not here: batch norm's own sums, which go through the layer's communicator.

use std::num::NonZeroUsize;
use std::sync::mpsc::{Receiver, Sender, channel};

use crate::Result;

/// One rank's end.
pub struct GradientSum {
    role: Role,
}

enum Role {
    /// Rank 0, with an end for each of the others in their order.
    Root(Vec<End>),
    Leaf(End),
    /// Another way of summing.
    Through(Box<Sum>),
}

type Sum = dyn Fn(&mut [f64]) -> Result<()> + Send;

/// One end of a connection; it fails, rather than waits, where the other is gone.
struct End {
    to: Sender<Vec<f64>>,
    from: Receiver<Vec<f64>>,
}

/// The ends of a new group, by rank.
#[must_use]
pub fn connect(world_size: NonZeroUsize) -> Vec<GradientSum> {
    let (near, far): (Vec<_>, Vec<_>) = (1..world_size.get()).map(|_| connection()).unzip();
    let leaves = far.into_iter().map(Role::Leaf);
    std::iter::once(Role::Root(near)).chain(leaves).map(|role| GradientSum { role }).collect()
}

fn connection() -> (End, End) {
    let (to_leaf, from_root) = channel();
    let (to_root, from_leaf) = channel();
    (End { to: to_leaf, from: from_leaf }, End { to: to_root, from: from_root })
}

impl GradientSum {
    /// A sum that is taken by other means.
    pub fn through(sum: impl Fn(&mut [f64]) -> Result<()> + Send + 'static) -> Self {
        Self { role: Role::Through(Box::new(sum)) }
    }

    /// Replaces `values` by their sum over the ranks. Waits for all of them.
    pub fn all_reduce(&self, values: &mut [f64]) -> Result<()> {
        match &self.role {
            Role::Root(leaves) => {
                for leaf in leaves {
                    let theirs = leaf.from.recv()?;
                    if theirs.len() != values.len() {
                        return Err(format!("{} gradients beside {}", theirs.len(), values.len()).into());
                    }
                    values.iter_mut().zip(theirs).for_each(|(sum, value)| *sum += value);
                }
                leaves.iter().try_for_each(|leaf| Ok(leaf.to.send(values.to_vec())?))
            }
            Role::Leaf(root) => {
                root.to.send(values.to_vec())?;
                values.copy_from_slice(&root.from.recv()?);
                Ok(())
            }
            Role::Through(sum) => sum(values),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn every_rank_gets_the_sum_in_the_order_of_ranks() {
        let ends = connect(NonZeroUsize::new(3).unwrap());
        // In any other order the small number would be lost.
        let terms = [[1e20, 1.0], [-1e20, 2.0], [1.0, 4.0]];
        let threads: Vec<_> = ends
            .into_iter()
            .zip(terms)
            .map(|(end, mut values)| {
                thread::spawn(move || {
                    end.all_reduce(&mut values).unwrap();
                    values
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), [1.0, 7.0]);
        }
    }

    #[test]
    fn a_rank_that_is_gone_is_an_error() {
        let mut ends = connect(NonZeroUsize::new(2).unwrap());
        drop(ends.pop());
        assert!(ends[0].all_reduce(&mut [1.0]).is_err());
    }
}
