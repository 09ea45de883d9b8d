//! Compiled kernels on disk: a file per kernel, named after the digest of all that made it, with the digest of its content.
//!
//! A file that is short, long or changed is not trusted: it reads as missing, and is written again. Files appear whole, by
//! a rename, so processes may fill the cache together.
//!
//! Deliberately not here: errors. A cache that cannot be read or written only costs time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

const DIGEST: usize = 32;

/// A directory of compiled kernels.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    directory: Option<PathBuf>,
}

impl Cache {
    /// `SYNCBN_CACHE_DIR`, or `syncbn` in the user's cache directory; set to nothing: no cache.
    pub(crate) fn from_env() -> Self {
        let var = |name| std::env::var_os(name).map(PathBuf::from);
        let directory = var("SYNCBN_CACHE_DIR")
            .or_else(|| var("XDG_CACHE_HOME").map(|home| home.join("syncbn")))
            .or_else(|| var("HOME").map(|home| home.join(".cache").join("syncbn")))
            .filter(|directory| !directory.as_os_str().is_empty());
        Self { directory }
    }

    /// What was stored under these parts, if it is still what was stored.
    pub(crate) fn get(&self, key: &[&[u8]]) -> Option<Vec<u8>> {
        let mut content = fs::read(self.path(key)?).ok()?;
        let payload = content.split_off_checked(DIGEST)?;
        (Sha256::digest(&payload)[..] == content[..]).then_some(payload)
    }

    /// Stores the payload, if it can.
    pub(crate) fn put(&self, key: &[&[u8]], payload: &[u8]) {
        let Some(path) = self.path(key) else { return };
        let mut content = Sha256::digest(payload).to_vec();
        content.extend_from_slice(payload);
        if write_whole(&path, &content).is_none() {
            // Slower next time, and nothing else: the kernel itself is in hand.
        }
    }

    fn path(&self, key: &[&[u8]]) -> Option<PathBuf> {
        let mut digest = Sha256::new();
        for part in key {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let name = digest.finalize().iter().fold(String::new(), |name, byte| name + &format!("{byte:02x}"));
        Some(self.directory.as_ref()?.join(name + ".cubin"))
    }
}

trait SplitOffChecked: Sized {
    fn split_off_checked(&mut self, at: usize) -> Option<Self>;
}

impl SplitOffChecked for Vec<u8> {
    fn split_off_checked(&mut self, at: usize) -> Option<Self> {
        (self.len() > at).then(|| self.split_off(at))
    }
}

fn write_whole(path: &Path, content: &[u8]) -> Option<()> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    fs::create_dir_all(path.parent()?).ok()?;
    let partial = path.with_extension(format!("{}-{number}.partial", std::process::id()));
    let written = fs::write(&partial, content).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        fs::remove_file(&partial).ok()?;
    }
    written.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(directory: &tempfile::TempDir) -> Cache {
        Cache { directory: Some(directory.path().join("kernels")) }
    }

    #[test]
    fn what_was_stored_is_found_under_its_key_alone() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory);
        assert_eq!(cache.get(&[b"source", b"sm_90"]), None);
        cache.put(&[b"source", b"sm_90"], b"code");
        assert_eq!(cache.get(&[b"source", b"sm_90"]).as_deref(), Some(&b"code"[..]));
        assert_eq!(cache.get(&[b"source", b"sm_80"]), None);
        assert_eq!(cache.get(&[b"sources", b"m_90"]), None);
    }

    #[test]
    fn a_changed_or_cut_file_is_not_trusted_and_is_rebuilt() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory);
        cache.put(&[b"k"], b"code that is long enough");
        let path = cache.path(&[b"k"]).unwrap();
        let good = fs::read(&path).unwrap();
        for bad in [&good[..good.len() - 1], &good[..10], &[], &[&good[..], b"x"].concat()[..]] {
            fs::write(&path, bad).unwrap();
            assert_eq!(cache.get(&[b"k"]), None);
        }
        for byte in [0, 40] {
            let mut bad = good.clone();
            bad[byte] ^= 1;
            fs::write(&path, bad).unwrap();
            assert_eq!(cache.get(&[b"k"]), None);
        }
        cache.put(&[b"k"], b"code that is long enough");
        assert_eq!(fs::read(&path).unwrap(), good);
    }

    #[test]
    fn writers_at_once_leave_one_whole_file() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory);
        let payload = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| cache.put(&[b"k"], &payload));
            }
        });
        assert_eq!(cache.get(&[b"k"]), Some(payload));
        assert_eq!(fs::read_dir(directory.path().join("kernels")).unwrap().count(), 1);
    }

    #[test]
    fn without_a_directory_nothing_is_kept() {
        let cache = Cache { directory: None };
        cache.put(&[b"k"], b"code");
        assert_eq!(cache.get(&[b"k"]), None);
    }
}
