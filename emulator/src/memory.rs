//! The memory of a device: one file in memory, which other processes can open, and a list of what is free in it.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::{null_mut, write_bytes};
use std::sync::{Mutex, PoisonError};
use std::{fs, process, slice};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};

/// The bytes of a device's memory. They cost nothing before they are used.
pub(crate) const SIZE: usize = 8 << 30;
/// What addresses are multiples of.
const ALIGNMENT: usize = 256;
/// The least bytes behind a region that nobody may write.
const FENCE: usize = 256;
/// What such bytes are.
const UNTOUCHED: u8 = 0xa5;

/// A device's memory.
#[derive(Debug)]
pub(crate) struct Memory {
    file: OwnedFd,
    base: usize,
    regions: Mutex<Regions>,
}

#[derive(Debug)]
struct Regions {
    /// Length by offset.
    free: BTreeMap<usize, usize>,
    used: HashMap<usize, Used>,
}

#[derive(Clone, Copy, Debug)]
struct Used {
    /// With what is behind it.
    len: usize,
    /// What was asked for.
    bytes: usize,
}

impl Memory {
    pub(crate) fn new() -> Result<Self, Errno> {
        let file = memfd_create("emulated-device", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, SIZE as u64)?;
        let base = map(&file)?;
        let regions = Regions { free: BTreeMap::from([(0, SIZE)]), used: HashMap::new() };
        Ok(Self { file, base, regions: Mutex::new(regions) })
    }

    /// The address of so many bytes, all of them 255: a NaN of any type.
    pub(crate) fn allocate(&self, bytes: usize) -> Option<usize> {
        let len = bytes.checked_add(FENCE)?.checked_next_multiple_of(ALIGNMENT)?;
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let (&offset, &found) = regions.free.iter().find(|(_, found)| **found >= len)?;
        regions.free.remove(&offset);
        if found > len {
            regions.free.insert(offset + len, found - len);
        }
        regions.used.insert(offset, Used { len, bytes });
        let address = self.base + offset;
        // SAFETY: the region is mapped, and nobody else has it.
        unsafe { write_bytes(address as *mut u8, 0xff, bytes) };
        // SAFETY: so is what is behind it.
        unsafe { write_bytes((address + bytes) as *mut u8, UNTOUCHED, len - bytes) };
        Some(address)
    }

    /// Takes a region back. An error if there is none at this address. If something was written behind it, the process
    /// ends.
    pub(crate) fn free(&self, address: usize) -> Result<(), String> {
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let offset = address.wrapping_sub(self.base);
        let Some(used) = regions.used.remove(&offset) else {
            return Err(format!("freeing {address:#x}, where no region begins"));
        };
        used.check(address);
        let mut len = used.len;
        if let Some(next) = regions.free.remove(&(offset + len)) {
            len += next;
        }
        match regions.free.range_mut(..offset).next_back() {
            Some((before, before_len)) if before + *before_len == offset => *before_len += len,
            _ => drop(regions.free.insert(offset, len)),
        }
        Ok(())
    }

    /// Ends the process if something was written behind a region that is in use.
    pub(crate) fn check(&self) {
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.used.iter().for_each(|(offset, used)| used.check(self.base + offset));
    }

    /// What another process needs to open the region at this address.
    pub(crate) fn export(&self, address: usize) -> Option<Handle> {
        let offset = address.wrapping_sub(self.base);
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        regions.used.get(&offset)?;
        Some(Handle { process: process::id(), file: self.file.as_raw_fd(), offset })
    }
}

impl Used {
    /// Ends the process if something was written behind the region.
    fn check(&self, address: usize) {
        let Self { len, bytes } = *self;
        // SAFETY: it is mapped, and nobody may write it.
        let behind = unsafe { slice::from_raw_parts((address + bytes) as *const u8, len - bytes) };
        if behind.iter().any(|byte| *byte != UNTOUCHED) {
            // Whoever frees memory, or ends, may be past caring about errors.
            eprintln!("something was written behind a region of {bytes} bytes");
            process::abort();
        }
    }
}

/// A region of another process's device, as it travels between processes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle {
    process: u32,
    file: i32,
    offset: usize,
}

impl Handle {
    /// The region's address in this process; `None` in the process that exported it, and if that is gone.
    pub(crate) fn open(self) -> Option<usize> {
        static OPENED: Mutex<BTreeMap<(u32, i32), usize>> = Mutex::new(BTreeMap::new());
        if self.process == process::id() {
            return None;
        }
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (self.process, self.file);
        if let Some(base) = opened.get(&key) {
            return Some(base + self.offset);
        }
        let path = format!("/proc/{}/fd/{}", self.process, self.file);
        let file: File = fs::OpenOptions::new().read(true).write(true).open(path).ok()?;
        let base = map(&file.into()).ok()?;
        opened.insert(key, base);
        Some(base + self.offset)
    }
}

/// Maps a device's memory; it is never unmapped.
fn map(file: &OwnedFd) -> Result<usize, Errno> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
    // SAFETY: a new mapping, at an address that nothing uses.
    let base = unsafe { mmap(null_mut(), SIZE, protection, flags, file, 0) }?;
    Ok(base as usize)
}
