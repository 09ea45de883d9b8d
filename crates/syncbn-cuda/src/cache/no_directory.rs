//! In place of `directory`, on systems where the crate cannot find out who may change a file: nothing is kept.

use std::path::Path;

pub(super) enum Directory {}

impl Directory {
    pub(super) fn open(_: &Path) -> Option<Self> {
        None
    }
    pub(super) fn create(_: &Path) -> Option<Self> {
        None
    }
    pub(super) fn read(&self, _: &str, _: usize) -> Option<Vec<u8>> {
        match *self {}
    }
    pub(super) fn write(&self, _: &str, _: &[u8]) -> Option<()> {
        match *self {}
    }
}
