//! Compiled kernels on disk, one file for each. Its name is the digest of all inputs of the compiler, and it begins with the digest of
//! its name and content.
//!
//! A file that was truncated, extended, changed or renamed counts as missing, and is written again. Files are written under another name
//! and renamed, so several processes may fill the cache. Files that another user could have written are not used; see `directory`.
//! There are no errors of reading and writing: a cache that cannot be used only costs time.

#[cfg(unix)]
mod directory;
#[cfg(not(unix))]
#[path = "cache/no_directory.rs"]
mod directory;

use std::ffi::OsString;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::error::CudaError;
use directory::Directory;

const DIGEST: usize = 32;
/// The largest size of a file, in bytes. Kernels have about a hundredth of it.
const LIMIT: usize = 16 << 20;

/// A directory of compiled kernels.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    directory: Option<PathBuf>,
}

impl Cache {
    /// `SYNCBN_CACHE_DIR`, or `syncbn` in the user's cache directory; set to nothing: no cache.
    pub(crate) fn from_env() -> Result<Self, CudaError> {
        Self::from_vars(|name| std::env::var_os(name))
    }

    fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<Self, CudaError> {
        if let Some(path) = var("SYNCBN_CACHE_DIR").map(PathBuf::from) {
            let none = path.as_os_str().is_empty();
            if !none && path.is_relative() {
                return Err(CudaError::CacheDirectory { path });
            }
            return Ok(Self { directory: (!none).then_some(path) });
        }
        // A relative directory of the user's counts as unset, as the XDG base directory specification says.
        let home = |name| var(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let home = home("XDG_CACHE_HOME").or_else(|| home("HOME").map(|home| home.join(".cache")));
        Ok(Self { directory: home.map(|home| home.join("syncbn")) })
    }

    /// What was stored under these parts, if it is still what was stored.
    pub(crate) fn get(&self, key: &[&[u8]]) -> Option<Vec<u8>> {
        let name = name(key);
        let mut content = Directory::open(self.directory.as_ref()?)?.read(&name, LIMIT)?;
        if content.len() <= DIGEST {
            return None;
        }
        let payload = content.split_off(DIGEST);
        (digest(&[name.as_bytes(), &payload]) == content[..]).then_some(payload)
    }

    /// Stores the payload, if it can.
    pub(crate) fn put(&self, key: &[&[u8]], payload: &[u8]) {
        let name = name(key);
        let content = [&digest(&[name.as_bytes(), payload]), payload].concat();
        let directory = self.directory.as_ref().filter(|_| content.len() <= LIMIT);
        if directory.and_then(|path| Directory::create(path)?.write(&name, &content)).is_none() {
            // Only the next start is slower: this process has the kernel.
        }
    }
}

fn name(key: &[&[u8]]) -> String {
    let hex = digest(key).iter().fold(String::new(), |name, byte| name + &format!("{byte:02x}"));
    hex + ".cubin"
}

fn digest(parts: &[&[u8]]) -> [u8; DIGEST] {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

#[cfg(test)]
mod tests {
    use std::fs;

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
        let path = cache.directory.as_ref().unwrap().join(name(&[b"k"]));
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
    fn a_renamed_file_is_not_trusted() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory);
        cache.put(&[b"one"], b"code");
        let path = |key| cache.directory.as_ref().unwrap().join(name(&[key]));
        fs::rename(path(b"one"), path(b"two")).unwrap();
        assert_eq!(cache.get(&[b"two"]), None);
    }

    #[test]
    fn what_is_larger_than_any_kernel_is_neither_stored_nor_read() {
        let directory = tempfile::tempdir().unwrap();
        let cache = cache(&directory);
        cache.put(&[b"k"], &vec![0; LIMIT]);
        assert_eq!(cache.get(&[b"k"]), None);
        assert!(!directory.path().join("kernels").exists());
    }

    #[test]
    fn no_directory_is_taken_from_where_the_program_happens_to_run() {
        let chosen = |vars: &[(&str, &str)]| {
            let var = |name: &str| vars.iter().find(|(of, _)| *of == name).map(|(_, value)| value.into());
            Cache::from_vars(var).map(|cache| cache.directory)
        };
        let some = |path: &str| Some(PathBuf::from(path));
        assert_eq!(chosen(&[("XDG_CACHE_HOME", ""), ("HOME", "/h")]).unwrap(), some("/h/.cache/syncbn"));
        assert_eq!(chosen(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]).unwrap(), some("/h/.cache/syncbn"));
        assert_eq!(chosen(&[("XDG_CACHE_HOME", "/x"), ("HOME", "/h")]).unwrap(), some("/x/syncbn"));
        for home in ["", ".", "h", "../h"] {
            assert_eq!(chosen(&[("HOME", home)]).unwrap(), None);
        }
        assert_eq!(chosen(&[]).unwrap(), None);
        let set = |value| chosen(&[("SYNCBN_CACHE_DIR", value), ("HOME", "/h")]);
        assert_eq!(set("/own").unwrap(), some("/own"));
        assert_eq!(set("").unwrap(), None);
        let error = set("kernels").unwrap_err().to_string();
        assert!(error.contains("SYNCBN_CACHE_DIR") && error.contains("kernels"), "{error}");
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
