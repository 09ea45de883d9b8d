//! The calls of NCCL that a sum over the ranks needs.
//!
//! `SYNCBN_NCCL` names the library's file where the loader does not find it.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::ptr::{null, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::CudaStream;
use libloading::Library;
use syncbn_core::{Dtype, Param};

use super::library;
use crate::error::{CudaError, NcclError};

type RawComm = *mut c_void;
type Code = c_int;

const SUCCESS: Code = 0;
const INVALID_ARGUMENT: Code = 4;
const INVALID_USAGE: Code = 5;
const IN_PROGRESS: Code = 7;
const FLOAT32: c_int = 7;
const FLOAT64: c_int = 8;
const SUM: c_int = 0;
const NO_COLOR: c_int = -1;
/// The first version with `ncclCommSplit`, as `ncclGetVersion` counts.
const OLDEST: c_int = 21800;
/// How long to wait before asking again whether NCCL is done.
const PAUSE: Duration = Duration::from_millis(1);

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RawId(pub(crate) [u8; 128]);

/// `ncclConfig_t` as of [`OLDEST`]; newer versions read as much of it as its size says.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    fn new(blocking: bool) -> Self {
        const UNSET: c_int = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: OLDEST.unsigned_abs(),
            blocking: c_int::from(blocking),
            cga_cluster_size: UNSET,
            min_ctas: UNSET,
            max_ctas: UNSET,
            net_name: null(),
            split_share: UNSET,
        }
    }
}

/// The library, loaded, with the functions of nccl.h.
pub(crate) struct Nccl {
    unique_id: unsafe extern "C" fn(*mut RawId) -> Code,
    init: unsafe extern "C" fn(*mut RawComm, c_int, RawId, c_int, *mut Config) -> Code,
    split: unsafe extern "C" fn(RawComm, c_int, c_int, *mut RawComm, *mut Config) -> Code,
    async_error: unsafe extern "C" fn(RawComm, *mut Code) -> Code,
    count: unsafe extern "C" fn(RawComm, *mut c_int) -> Code,
    rank: unsafe extern "C" fn(RawComm, *mut c_int) -> Code,
    all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, RawComm, *mut c_void) -> Code,
    abort: unsafe extern "C" fn(RawComm) -> Code,
    destroy: unsafe extern "C" fn(RawComm) -> Code,
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    last_error: unsafe extern "C" fn(RawComm) -> *const c_char,
    /// Keeps the functions loaded.
    _library: Library,
}

/// The library, which is loaded once for a process.
pub(crate) fn nccl() -> Result<&'static Nccl, CudaError> {
    static NCCL: OnceLock<Result<Nccl, String>> = OnceLock::new();
    NCCL.get_or_init(Nccl::load).as_ref().map_err(|reason| CudaError::MissingLibrary {
        library: "libnccl",
        reason: reason.clone(),
        install: "NCCL 2.18 or newer (the PyPI packages nvidia-nccl-cu12 and nvidia-nccl-cu13 have it), and set \
                  SYNCBN_NCCL to the library's file if the loader does not find it",
    })
}

impl Nccl {
    fn load() -> Result<Self, String> {
        Self::of(library::open(Some("SYNCBN_NCCL"), &["libnccl.so.2", "libnccl.so"])?)
    }

    fn of(library: Library) -> Result<Self, String> {
        type Version = unsafe extern "C" fn(*mut c_int) -> Code;
        let mut version = 0;
        let ask = symbol::<Version>(&library, c"ncclGetVersion")?;
        // SAFETY: the pointer is for one number.
        let code = unsafe { ask(&raw mut version) };
        if code != SUCCESS || version < OLDEST {
            return Err(format!("its version is {version}, expected {OLDEST} or above"));
        }
        Ok(Self {
            unique_id: symbol(&library, c"ncclGetUniqueId")?,
            init: symbol(&library, c"ncclCommInitRankConfig")?,
            split: symbol(&library, c"ncclCommSplit")?,
            async_error: symbol(&library, c"ncclCommGetAsyncError")?,
            count: symbol(&library, c"ncclCommCount")?,
            rank: symbol(&library, c"ncclCommUserRank")?,
            all_reduce: symbol(&library, c"ncclAllReduce")?,
            abort: symbol(&library, c"ncclCommAbort")?,
            destroy: symbol(&library, c"ncclCommDestroy")?,
            error_string: symbol(&library, c"ncclGetErrorString")?,
            last_error: symbol(&library, c"ncclGetLastError")?,
            _library: library,
        })
    }

    pub(crate) fn unique_id(&self) -> Result<RawId, NcclError> {
        let mut id = RawId([0; 128]);
        // SAFETY: the pointer is for one id.
        let code = unsafe { (self.unique_id)(&raw mut id) };
        self.check("making an id", code)?;
        Ok(id)
    }

    fn check(&self, during: &'static str, code: Code) -> Result<(), NcclError> {
        if code == SUCCESS || code == IN_PROGRESS { Ok(()) } else { Err(self.error(during, code)) }
    }

    fn error(&self, during: &'static str, code: Code) -> NcclError {
        // SAFETY: the function takes any code.
        let text = text(unsafe { (self.error_string)(code) });
        // SAFETY: without a communicator it tells the thread's last error.
        let detail = self::text(unsafe { (self.last_error)(null_mut()) });
        let callers = matches!(code, INVALID_ARGUMENT | INVALID_USAGE);
        NcclError { during, code, text, detail, callers }
    }
}

fn symbol<F: Copy>(library: &Library, name: &CStr) -> Result<F, String> {
    // SAFETY: the fields of `Nccl` have the functions' types as nccl.h declares them; the library is kept beside them.
    unsafe { library.get::<F>(name.to_bytes_with_nul()) }.map(|s| *s).map_err(|e| e.to_string())
}

fn text(raw: *const c_char) -> String {
    if raw.is_null() {
        return String::new();
    }
    // SAFETY: not null, and NCCL's strings end in 0.
    unsafe { CStr::from_ptr(raw) }.to_string_lossy().trim().to_owned()
}

/// Why a communicator was not made.
pub(crate) enum NotMade {
    /// NCCL's error.
    Failed(NcclError),
    /// The deadline passed.
    Late,
}

impl From<NcclError> for NotMade {
    fn from(error: NcclError) -> Self {
        Self::Failed(error)
    }
}

/// One rank of an NCCL communicator. Null once it was aborted or destroyed.
///
/// `AtomicPtr` makes it `Send` and `Sync`, which is sound: NCCL lets any thread use a communicator, as long as the calls come
/// one after the other and the communicator's device is current. The calls that enqueue or split say so in their Safety
/// section; `async_error`, `abort` and `destroy` are called by who holds the group's gate, or, for abort alone, while
/// another call hangs, which is what NCCL has it for.
pub(crate) struct Comm {
    nccl: &'static Nccl,
    raw: AtomicPtr<c_void>,
}

impl Comm {
    /// Joins the world of this id, without blocking. The device has to be current.
    pub(crate) fn init(
        id: RawId,
        world_size: c_int,
        rank: c_int,
        deadline: Instant,
    ) -> Result<Self, CudaError> {
        let nccl = nccl()?;
        let (mut raw, mut config) = (null_mut(), Config::new(false));
        // SAFETY: the pointers are for one communicator and one config, which NCCL copies before it returns.
        let code = unsafe { (nccl.init)(&raw mut raw, world_size, id, rank, &raw mut config) };
        nccl.check("joining the ranks", code)?;
        let comm = Self { nccl, raw: AtomicPtr::new(raw) };
        match comm.wait("joining the ranks", deadline) {
            Ok(()) => Ok(comm),
            Err(NotMade::Failed(error)) => Err(error.into()),
            Err(NotMade::Late) => Err(CudaError::NotMet { during: "joining the ranks" }),
        }
    }

    /// A communicator of the ranks that give the same color, ordered by key and then by old rank; `None` for a rank without
    /// one. This communicator must not be blocking, so that the deadline holds; the new one is, where `blocking` says so.
    pub(crate) fn split(
        &self,
        color: Option<c_int>,
        key: c_int,
        blocking: bool,
        deadline: Instant,
    ) -> Result<Option<Self>, CudaError> {
        let during = "splitting the group";
        // NCCL may write to both until it is done, even after the deadline: then they are leaked.
        let config = Box::into_raw(Box::new(Config::new(blocking)));
        let made = Box::into_raw(Box::new(null_mut::<c_void>()));
        // SAFETY: this communicator is live; the pointers stay valid until the boxes are taken back.
        let code = unsafe { (self.nccl.split)(self.raw(), color.unwrap_or(NO_COLOR), key, made, config) };
        let result = self.nccl.check(during, code).map_err(NotMade::from);
        match result.and_then(|()| self.wait(during, deadline)) {
            Err(NotMade::Late) => return Err(CudaError::NotMet { during }),
            Err(NotMade::Failed(error)) => return Err(error.into()),
            Ok(()) => {}
        }
        // SAFETY: NCCL is done with it; it came from `Box::into_raw`.
        drop(unsafe { Box::from_raw(config) });
        // SAFETY: as above.
        let raw = *unsafe { Box::from_raw(made) };
        Ok((!raw.is_null()).then(|| Self { nccl: self.nccl, raw: AtomicPtr::new(raw) }))
    }

    /// Waits until the call that was begun is done.
    fn wait(&self, during: &'static str, deadline: Instant) -> Result<(), NotMade> {
        while self.is_in_progress(during)? {
            if Instant::now() >= deadline {
                return Err(NotMade::Late);
            }
            thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// The error of earlier work, if there is one. Does not wait.
    pub(crate) fn async_error(&self) -> Result<(), NcclError> {
        self.is_in_progress("summing").map(drop)
    }

    fn is_in_progress(&self, during: &'static str) -> Result<bool, NcclError> {
        let raw = self.raw();
        let mut state = SUCCESS;
        if !raw.is_null() {
            // SAFETY: the communicator is live; the pointer is for one code.
            let code = unsafe { (self.nccl.async_error)(raw, &raw mut state) };
            self.nccl.check(during, code)?;
        }
        self.nccl.check(during, state)?;
        Ok(state == IN_PROGRESS)
    }

    /// The number of ranks, and this rank.
    pub(crate) fn size_and_rank(&self) -> Result<(c_int, c_int), NcclError> {
        let (mut size, mut rank) = (0, 0);
        // SAFETY: the communicator is live; the pointer is for one number.
        let code = unsafe { (self.nccl.count)(self.raw(), &raw mut size) };
        self.nccl.check("counting the ranks", code)?;
        // SAFETY: as above.
        let code = unsafe { (self.nccl.rank)(self.raw(), &raw mut rank) };
        self.nccl.check("counting the ranks", code)?;
        Ok((size, rank))
    }

    /// Enqueues the sum of `count` numbers of type `P` over the ranks, in place.
    ///
    /// # Safety
    /// `pointer` holds as many numbers of that type on the communicator's device, which is the stream's and is current, until the work has
    /// run; no other call on this communicator runs meanwhile.
    pub(crate) unsafe fn all_reduce_sum<P: Param>(
        &self,
        pointer: u64,
        count: usize,
        stream: &CudaStream,
    ) -> Result<(), NcclError> {
        let raw = self.raw();
        if raw.is_null() {
            let text = "the communicator was aborted".into();
            return Err(NcclError {
                during: "summing",
                code: 0,
                text,
                detail: String::new(),
                callers: false,
            });
        }
        let numbers = pointer as *mut c_void;
        let dtype = if P::DTYPE == Dtype::F64 { FLOAT64 } else { FLOAT32 };
        // SAFETY: the communicator is live; the rest is the caller's promise.
        let code = unsafe {
            (self.nccl.all_reduce)(numbers, numbers, count, dtype, SUM, raw, stream.cu_stream().cast())
        };
        self.nccl.check("summing", code)
    }

    /// Ends it at once, with its unfinished work.
    pub(crate) fn abort(&self) {
        let raw = self.raw.swap(null_mut(), Ordering::AcqRel);
        if !raw.is_null() {
            // SAFETY: it is live, and nobody finds it any more. A failure leaves nothing to be done.
            unsafe { (self.nccl.abort)(raw) };
        }
    }

    /// Ends it, after all its work has run.
    pub(crate) fn destroy(&self) {
        let raw = self.raw.swap(null_mut(), Ordering::AcqRel);
        if !raw.is_null() {
            // SAFETY: it is live, and nobody finds it any more. A failure leaves nothing to be done.
            unsafe { (self.nccl.destroy)(raw) };
        }
    }

    fn raw(&self) -> RawComm {
        self.raw.load(Ordering::Acquire)
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        self.abort();
    }
}
