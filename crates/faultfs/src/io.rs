//! The callbacks of an open file.

use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::sync::Arc;
use std::{ptr, slice};

use rusqlite::ffi;

use crate::disk::FileId;
use crate::faults::{Kind, Verdict};
use crate::file::SECTOR_BYTES;
use crate::vfs::shielded;
use crate::{Device, Shared};

/// What SQLite holds of an open file; the file of the layer below follows it
/// in the same allocation.
#[repr(C)]
pub(crate) struct ShimFile {
    base: ffi::sqlite3_file,
    open: *mut OpenFile,
}

/// What we know of an open file.
pub(crate) struct OpenFile {
    pub(crate) shared: Arc<Shared>,
    /// `None` for a file that nobody looks for after a restart.
    pub(crate) model: Option<FileId>,
    /// To be synced together with the file, once.
    pub(crate) directory_to_sync: Option<PathBuf>,
}

impl ShimFile {
    /// Where the file of the layer below lies.
    pub(crate) fn inner(file: *mut ffi::sqlite3_file) -> *mut ffi::sqlite3_file {
        file.cast::<Self>().wrapping_add(1).cast()
    }

    /// Makes `file` one of ours.
    ///
    /// # Safety
    ///
    /// `file` is what SQLite passes for opening, and its inner file is open.
    pub(crate) unsafe fn fill(file: *mut ffi::sqlite3_file, open: OpenFile) {
        let shim = Self {
            base: ffi::sqlite3_file { pMethods: &METHODS },
            open: Box::into_raw(Box::new(open)),
        };
        // SAFETY: SQLite passes at least `szOsFile` bytes, aligned for pointers.
        unsafe { file.cast::<Self>().write(shim) };
    }
}

/// # Safety
///
/// `file` is one of ours and open, as it is whenever SQLite calls one of these
/// callbacks, and SQLite does not call two of them at once for one file.
unsafe fn opened<'a>(file: *mut ffi::sqlite3_file) -> (&'a mut OpenFile, *mut ffi::sqlite3_file) {
    // SAFETY: `fill` put an `OpenFile` there that lives until `close`.
    let open = unsafe { &mut *(*file.cast::<ShimFile>()).open };
    (open, ShimFile::inner(file))
}

/// Calls a method of the file below.
///
/// Use it where the arguments are those that SQLite has passed for the same
/// method; then the callee's requirements are met.
macro_rules! below {
    ($inner:expr, $method:ident ($($argument:expr),*)) => {
        match (*(*$inner).pMethods).$method {
            Some(method) => method($inner, $($argument),*),
            None => ffi::SQLITE_IOERR,
        }
    };
}

/// Closes a file of the layer below if it is open.
///
/// # Safety
///
/// `inner` was passed to the layer below for opening and is not used again.
pub(crate) unsafe fn close_inner(inner: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: by the contract of this function; without methods there is
    // nothing to close.
    unsafe {
        if (*inner).pMethods.is_null() {
            return ffi::SQLITE_OK;
        }
        below!(inner, xClose())
    }
}

/// Reads a whole file of the layer below.
///
/// # Safety
///
/// `inner` is open.
pub(crate) unsafe fn read_all(inner: *mut ffi::sqlite3_file) -> Result<Vec<u8>, c_int> {
    const STEP_BYTES: usize = 1 << 20;
    let mut size = 0;
    // SAFETY: by the contract of this function.
    checked(unsafe { below!(inner, xFileSize(&mut size)) })?;
    let mut contents = vec![0; usize::try_from(size).map_err(|_| ffi::SQLITE_IOERR)?];
    for (step, bytes) in contents.chunks_mut(STEP_BYTES).enumerate() {
        let offset = (step * STEP_BYTES) as ffi::sqlite3_int64;
        // SAFETY: the buffer is as long as its length says, at most 1 MiB.
        let code = unsafe {
            below!(
                inner,
                xRead(bytes.as_mut_ptr().cast(), bytes.len() as c_int, offset)
            )
        };
        checked(code)?;
    }
    Ok(contents)
}

fn checked(code: c_int) -> Result<(), c_int> {
    if code == ffi::SQLITE_OK {
        Ok(())
    } else {
        Err(code)
    }
}

/// Version 2 has no `xFetch`: all reads and writes come through here.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// Works without power as well: the connection has to let go of its memory,
/// its descriptor and its locks.
unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours, for the last time.
        let (open, inner) = unsafe {
            (
                Box::from_raw((*file.cast::<ShimFile>()).open),
                ShimFile::inner(file),
            )
        };
        if let Some(id) = open.model {
            open.shared.state().disk.closed(id);
        }
        // SAFETY: the inner file is open since ours is.
        unsafe { close_inner(inner) }
    })
}

unsafe extern "C" fn read(
    file: *mut ffi::sqlite3_file,
    buffer: *mut c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, inner) = unsafe { opened(file) };
        judged(open, Kind::Read, || {
            // SAFETY: the arguments are SQLite's.
            unsafe { below!(inner, xRead(buffer, amount, offset)) }
        })
    })
}

unsafe extern "C" fn write(
    file: *mut ffi::sqlite3_file,
    buffer: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, inner) = unsafe { opened(file) };
        let mut state = open.shared.state();
        let verdict = state.faults.judge(Kind::Write);
        if let Verdict::Fail(code) = verdict {
            return code;
        }
        // SAFETY: the arguments are SQLite's.
        let code = unsafe { below!(inner, xWrite(buffer, amount, offset)) };
        if code != ffi::SQLITE_OK {
            return code;
        }
        if let Some(id) = open.model {
            // SAFETY: SQLite passes `amount` readable bytes.
            let bytes = unsafe { slice::from_raw_parts(buffer.cast(), amount as usize) };
            state.disk.write(id, offset as usize, bytes);
        }
        told(verdict)
    })
}

unsafe extern "C" fn truncate(file: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, inner) = unsafe { opened(file) };
        let mut state = open.shared.state();
        let verdict = state.faults.judge(Kind::Truncate);
        if let Verdict::Fail(code) = verdict {
            return code;
        }
        // SAFETY: the arguments are SQLite's.
        let code = unsafe { below!(inner, xTruncate(size)) };
        if code != ffi::SQLITE_OK {
            return code;
        }
        if let Some(id) = open.model {
            state.disk.truncate(id, size as usize);
        }
        told(verdict)
    })
}

/// Only the model syncs: the real file has nothing to fear in a test, and real
/// syncs would take most of its time.
unsafe extern "C" fn sync(file: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, _) = unsafe { opened(file) };
        let mut state = open.shared.state();
        let verdict = state.faults.judge(Kind::Sync);
        if let Verdict::Fail(code) = verdict {
            return code;
        }
        state.faults.syncs += 1;
        if let Some(id) = open.model {
            state.disk.sync(id);
        }
        if let Some(directory) = open.directory_to_sync.take() {
            state.disk.sync_directory(&directory);
        }
        told(verdict)
    })
}

/// What the caller of a call that was made gets to hear.
fn told(verdict: Verdict) -> c_int {
    match verdict {
        Verdict::Pass => ffi::SQLITE_OK,
        Verdict::Fail(code) | Verdict::FailAfterwards(code) => code,
    }
}

/// Makes a call that changes no file, unless it has to fail.
fn judged(open: &OpenFile, kind: Kind, call: impl FnOnce() -> c_int) -> c_int {
    let verdict = open.shared.state().faults.judge(kind);
    match verdict {
        Verdict::Pass => call(),
        Verdict::Fail(code) | Verdict::FailAfterwards(code) => code,
    }
}

unsafe extern "C" fn file_size(
    file: *mut ffi::sqlite3_file,
    size: *mut ffi::sqlite3_int64,
) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, inner) = unsafe { opened(file) };
        judged(open, Kind::FileSize, || {
            // SAFETY: the arguments are SQLite's.
            unsafe { below!(inner, xFileSize(size)) }
        })
    })
}

unsafe extern "C" fn lock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, inner) = unsafe { opened(file) };
        judged(open, Kind::Lock, || {
            // SAFETY: the arguments are SQLite's.
            unsafe { below!(inner, xLock(level)) }
        })
    })
}

/// Works without power as well, so that a dead connection blocks nobody.
unsafe extern "C" fn unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours and a level.
        unsafe { below!(ShimFile::inner(file), xUnlock(level)) }
    })
}

unsafe extern "C" fn check_reserved_lock(
    file: *mut ffi::sqlite3_file,
    reserved: *mut c_int,
) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, inner) = unsafe { opened(file) };
        judged(open, Kind::CheckLock, || {
            // SAFETY: the arguments are SQLite's.
            unsafe { below!(inner, xCheckReservedLock(reserved)) }
        })
    })
}

unsafe extern "C" fn file_control(
    file: *mut ffi::sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    shielded(|| match operation {
        // The layer below would extend the file behind the model's back.
        ffi::SQLITE_FCNTL_SIZE_HINT | ffi::SQLITE_FCNTL_CHUNK_SIZE => ffi::SQLITE_OK,
        // It would map the file, as we do not; the answer is the limit, 0.
        ffi::SQLITE_FCNTL_MMAP_SIZE => {
            // SAFETY: SQLite passes a number for this operation.
            unsafe { *argument.cast::<ffi::sqlite3_int64>() = 0 };
            ffi::SQLITE_OK
        }
        // SAFETY: the arguments are SQLite's.
        _ => unsafe { below!(ShimFile::inner(file), xFileControl(operation, argument)) },
    })
}

unsafe extern "C" fn sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    SECTOR_BYTES as c_int
}

unsafe extern "C" fn device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite passes an open file of ours.
    let (open, _) = unsafe { opened(file) };
    match open.shared.device {
        Device::Bare => 0,
        Device::PowersafeOverwrite => ffi::SQLITE_IOCAP_POWERSAFE_OVERWRITE,
    }
}

unsafe extern "C" fn shm_map(
    file: *mut ffi::sqlite3_file,
    region: c_int,
    region_bytes: c_int,
    extend: c_int,
    mapped: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite passes room for a pointer, and reads it after a failure.
    unsafe { *mapped = ptr::null_mut() };
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, inner) = unsafe { opened(file) };
        judged(open, Kind::ShmMap, || {
            // SAFETY: the arguments are SQLite's.
            unsafe { below!(inner, xShmMap(region, region_bytes, extend, mapped)) }
        })
    })
}

unsafe extern "C" fn shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        let (open, inner) = unsafe { opened(file) };
        // SAFETY: the arguments are SQLite's.
        let call = || unsafe { below!(inner, xShmLock(offset, count, flags)) };
        if flags & ffi::SQLITE_SHM_LOCK != 0 {
            judged(open, Kind::ShmLock, call)
        } else {
            call()
        }
    })
}

unsafe extern "C" fn shm_barrier(file: *mut ffi::sqlite3_file) {
    let inner = ShimFile::inner(file);
    // SAFETY: SQLite passes an open file of ours.
    unsafe {
        if let Some(barrier) = (*(*inner).pMethods).xShmBarrier {
            barrier(inner);
        }
    }
}

unsafe extern "C" fn shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    shielded(|| {
        // SAFETY: SQLite passes an open file of ours.
        unsafe { below!(ShimFile::inner(file), xShmUnmap(delete)) }
    })
}
