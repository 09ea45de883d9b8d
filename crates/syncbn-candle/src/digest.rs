//! A number that differs where variables do, the same in every process (FNV-1a of 64 bits).

use std::fmt;

use candle_core::Tensor;

pub(crate) struct Digest(u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let add = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        self.0 = bytes.iter().fold(self.0, add);
    }

    pub(crate) fn word(&mut self, word: u32) {
        self.bytes(&word.to_le_bytes());
    }

    /// A tensor's shape and type.
    pub(crate) fn form(&mut self, tensor: &Tensor) {
        self.bytes(tensor.dtype().as_str().as_bytes());
        self.bytes(&(tensor.rank() as u64).to_le_bytes());
        tensor.dims().iter().for_each(|&size| self.bytes(&(size as u64).to_le_bytes()));
    }

    pub(crate) fn value(&self) -> u64 {
        self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
