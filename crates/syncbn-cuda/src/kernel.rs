//! A kernel before it is compiled: its source and its tuning.

/// One kernel. Each is a constant in the file of its name.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
    /// Whether it writes a tensor; else it writes sums.
    pub(crate) writes: bool,
    /// The number of tensors that it reads.
    pub(crate) reads: usize,
    /// Channels-last tensors of at most so many elements are read one element at a time, in blocks of so few channels that no channel
    /// has two blocks: for such tensors, waiting for another block takes longer than wide loads save.
    pub(crate) scalar_up_to: usize,
    pub(crate) rows: Tuning,
    pub(crate) columns: Tuning,
    /// For elements of two bytes, where a thread has twice as many sums.
    pub(crate) columns_of_halves: Tuning,
}

impl Kernel {
    /// The tuning for elements of `size` bytes.
    pub(crate) fn tuning(&self, columns: bool, size: usize) -> Tuning {
        match (columns, size) {
            (false, _) => self.rows,
            (true, 2) => self.columns_of_halves,
            (true, _) => self.columns,
        }
    }
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuning {
    /// The most threads of a block.
    pub(crate) threads: usize,
    /// Blocks of so many threads that a multiprocessor can run at once.
    pub(crate) blocks: usize,
    /// Loads of one tensor that a thread has in flight.
    pub(crate) unroll: usize,
}

impl Tuning {
    pub(crate) const fn new(threads: usize, blocks: usize, unroll: usize) -> Self {
        Self { threads, blocks, unroll }
    }
}
