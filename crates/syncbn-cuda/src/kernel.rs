//! What is said of a kernel before it is compiled: its source, and how it is tuned.

/// One kernel: its source, and what it is compiled for. Each stands in the file of its name.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
    /// The bytes of its argument struct, which the compiler compares with the one in the source.
    pub(crate) args_bytes: usize,
    /// Whether it writes a tensor, or only sums.
    pub(crate) writes: bool,
    /// Tensors that it reads, for what it may read ahead.
    pub(crate) reads: usize,
    /// Channels-last tensors of at most so many elements are read one element at a time, in blocks of so few channels that no
    /// other block has a part of them: what a block waits for others takes longer than what wide loads save.
    pub(crate) few: usize,
    pub(crate) rows: Tuning,
    pub(crate) columns: Tuning,
    /// For elements of two bytes: twice as many sums to a thread.
    pub(crate) columns_of_halves: Tuning,
}

impl Kernel {
    /// For elements of `size` bytes.
    pub(crate) fn tuning(&self, columns: bool, size: usize) -> Tuning {
        match (columns, size) {
            (false, _) => self.rows,
            (true, 2) => self.columns_of_halves,
            (true, _) => self.columns,
        }
    }
}

/// How many threads and blocks a kernel is compiled for, and how many loads each thread has in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tuning {
    /// The most threads of a block.
    pub(crate) threads: usize,
    /// Blocks of so many threads that have room on a multiprocessor.
    pub(crate) blocks: usize,
    /// Loads of one tensor.
    pub(crate) unroll: usize,
}

impl Tuning {
    pub(crate) const fn new(threads: usize, blocks: usize, unroll: usize) -> Self {
        Self { threads, blocks, unroll }
    }
}
