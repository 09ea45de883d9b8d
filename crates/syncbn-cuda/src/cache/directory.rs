//! A directory that only this process's user can change, so that its files can be trusted.
//!
//! All files are opened relative to the open directory, so the directory that was checked is the one that is used.

use std::fs::{DirBuilder, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, open, openat, renameat, statat, unlinkat,
};
use rustix::process::geteuid;

/// The end of the name of a file that is being written.
const PARTIAL: &str = ".partial";
/// A process that writes a file is done by then, or was killed.
const OLD: Duration = Duration::from_secs(3600);

pub(super) struct Directory(OwnedFd);

impl Directory {
    /// The directory, if only this user can change it.
    pub(super) fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(path, flags, Mode::empty()).ok()?;
        is_own(&fstat(&directory).ok()?).then_some(Self(directory))
    }

    /// The same, made first if it is not there.
    pub(super) fn create(path: &Path) -> Option<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).ok()?;
        Self::open(path)
    }

    /// A file's content, if it is a regular file that only this user can change, of `limit` bytes at most.
    pub(super) fn read(&self, name: &str, limit: usize) -> Option<Vec<u8>> {
        // Without NONBLOCK, opening a FIFO would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.0, name, flags, Mode::empty()).ok()?;
        let stat = fstat(&file).ok()?;
        if !is_own(&stat) || !FileType::from_raw_mode(stat.st_mode).is_file() {
            return None;
        }
        let mut content = Vec::new();
        File::from(file).take(limit as u64 + 1).read_to_end(&mut content).ok()?;
        (content.len() <= limit).then_some(content)
    }

    /// Puts the whole content under this name at once, or leaves what was there.
    pub(super) fn write(&self, name: &str, content: &[u8]) -> Option<()> {
        self.remove_old_partials();
        let partial = format!("{name}.{:016x}{PARTIAL}", fastrand::u64(..));
        // EXCL: the file is new, and no existing link is followed.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&self.0, &partial, flags, Mode::RUSR | Mode::WUSR).ok()?;
        let written = File::from(file).write_all(content).ok();
        let moved = written.and_then(|()| renameat(&self.0, &partial, &self.0, name).ok());
        if moved.is_none() {
            unlinkat(&self.0, &partial, AtFlags::empty()).ok()?;
        }
        moved
    }

    /// Removes the files of killed processes.
    fn remove_old_partials(&self) {
        let Ok(entries) = Dir::read_from(&self.0) else { return };
        for entry in
            entries.flatten().filter(|entry| entry.file_name().to_bytes().ends_with(PARTIAL.as_bytes()))
        {
            let stat = statat(&self.0, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW);
            if stat.is_ok_and(|stat| is_old(&stat)) {
                // Another process may have removed it already.
                let _ = unlinkat(&self.0, entry.file_name(), AtFlags::empty());
            }
        }
    }
}

/// Whether it belongs to this process's user, and neither group nor others may write to it.
fn is_own(stat: &Stat) -> bool {
    stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o022 == 0
}

fn is_old(stat: &Stat) -> bool {
    let written =
        u64::try_from(stat.st_mtime).map_or(UNIX_EPOCH, |time| UNIX_EPOCH + Duration::from_secs(time));
    SystemTime::now().duration_since(written).is_ok_and(|age| age >= OLD)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    const LIMIT: usize = 1000;

    fn directory() -> (tempfile::TempDir, PathBuf, Directory) {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("deep").join("kernels");
        let directory = Directory::create(&path).unwrap();
        (parent, path, directory)
    }

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_others_can_write_to_is_not_trusted() {
        let (_parent, path, directory) = directory();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        directory.write("entry", b"code").unwrap();
        assert_eq!(directory.read("entry", LIMIT).as_deref(), Some(&b"code"[..]));
        for mode in [0o620, 0o602] {
            fs::set_permissions(path.join("entry"), Permissions::from_mode(mode)).unwrap();
            assert_eq!(directory.read("entry", LIMIT), None);
        }
        for mode in [0o720, 0o702, 0o777, 0o1777] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert!(Directory::open(&path).is_none() && Directory::create(&path).is_none(), "{mode:o}");
        }
    }

    #[test]
    fn what_others_own_is_not_trusted() {
        let (_parent, path, _directory) = directory();
        let mut stat = rustix::fs::stat(&path).unwrap();
        assert!(is_own(&stat));
        stat.st_uid = stat.st_uid.wrapping_add(1);
        assert!(!is_own(&stat));
    }

    #[test]
    fn only_regular_files_up_to_the_limit_are_read_and_nothing_waits() {
        let (_parent, path, directory) = directory();
        fs::write(path.join("whole"), vec![0; LIMIT]).unwrap();
        fs::write(path.join("long"), vec![0; LIMIT + 1]).unwrap();
        symlink(path.join("whole"), path.join("link")).unwrap();
        fs::create_dir(path.join("folder")).unwrap();
        let fifo = CString::new(path.join("fifo").to_str().unwrap()).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        assert_eq!(directory.read("whole", LIMIT).map(|content| content.len()), Some(LIMIT));
        for name in ["long", "link", "folder", "fifo", "missing"] {
            assert_eq!(directory.read(name, LIMIT), None, "{name}");
        }
        // A file of an entry's name is replaced, not written to.
        for name in ["link", "fifo"] {
            directory.write(name, b"code").unwrap();
            assert_eq!(directory.read(name, LIMIT).as_deref(), Some(&b"code"[..]));
        }
        assert_eq!(fs::read(path.join("whole")).unwrap(), vec![0; LIMIT]);
        assert_eq!(directory.write("folder", b"code"), None);
        assert_eq!(names(&path), ["fifo", "folder", "link", "long", "whole"]);
    }

    #[test]
    fn what_killed_processes_left_is_removed_and_what_is_being_written_stays() {
        let (_parent, path, directory) = directory();
        for (name, age) in [("a.1-0.partial", 2 * OLD), ("b.partial", OLD / 2), ("c", 2 * OLD)] {
            let file = File::create(path.join(name)).unwrap();
            file.set_modified(SystemTime::now() - age).unwrap();
        }
        directory.write("entry", b"code").unwrap();
        assert_eq!(names(&path), ["b.partial", "c", "entry"]);
    }
}
