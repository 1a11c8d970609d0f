//! The callbacks of the file system itself, and their registration.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::{fs, ptr};

use rusqlite::ffi;

use crate::disk::{Disk, FileId};
use crate::faults::{Kind, Verdict};
use crate::io::{self, OpenFile, ShimFile};
use crate::{Device, Shared};

/// The files that SQLite reads after a restart.
const KEPT: c_int = ffi::SQLITE_OPEN_MAIN_DB
    | ffi::SQLITE_OPEN_MAIN_JOURNAL
    | ffi::SQLITE_OPEN_SUPER_JOURNAL
    | ffi::SQLITE_OPEN_WAL;

/// The files whose directory is synced together with their first sync.
const SYNCS_DIRECTORY: c_int =
    ffi::SQLITE_OPEN_MAIN_JOURNAL | ffi::SQLITE_OPEN_SUPER_JOURNAL | ffi::SQLITE_OPEN_WAL;

/// An entry in SQLite's list of file systems, taken out when dropped.
#[derive(Debug)]
pub(crate) struct Registration {
    name: String,
    shared: Arc<Shared>,
    /// Lives for ever: connections keep pointing to it for as long as they
    /// like, and SQLite does not say when the last of them is closed.
    vfs: AtomicPtr<ffi::sqlite3_vfs>,
}

/// What the callbacks of one file system find behind `pAppData`.
struct AppData {
    shared: Arc<Shared>,
    inner: *mut ffi::sqlite3_vfs,
}

impl Registration {
    pub(crate) fn new(device: Device) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let name = format!("faultfs-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let shared = Arc::new(Shared::new(device));

        // SAFETY: null asks for the default; the entry found is never freed.
        let inner = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
        assert!(!inner.is_null(), "SQLite has no file system of its own");
        // SAFETY: `inner` was just found, and SQLite does not change these two.
        let (inner_file_bytes, longest_path) = unsafe { ((*inner).szOsFile, (*inner).mxPathname) };
        let c_name = CString::new(name.clone()).expect("the name is made of letters and digits");
        let app_data = Box::new(AppData {
            shared: Arc::clone(&shared),
            inner,
        });
        let vfs = Box::into_raw(Box::new(ffi::sqlite3_vfs {
            iVersion: 2,
            szOsFile: size_of::<ShimFile>() as c_int + inner_file_bytes,
            mxPathname: longest_path,
            pNext: ptr::null_mut(),
            zName: c_name.into_raw(),
            pAppData: Box::into_raw(app_data).cast(),
            xOpen: Some(open),
            xDelete: Some(delete),
            xAccess: Some(access),
            xFullPathname: Some(full_pathname),
            xDlOpen: Some(dl_open),
            xDlError: Some(dl_error),
            xDlSym: Some(dl_sym),
            xDlClose: Some(dl_close),
            xRandomness: Some(randomness),
            xSleep: Some(sleep),
            xCurrentTime: Some(current_time),
            xGetLastError: Some(last_error),
            xCurrentTimeInt64: Some(current_time_int64),
            xSetSystemCall: None,
            xGetSystemCall: None,
            xNextSystemCall: None,
        }));
        // SAFETY: `vfs` and all it points to are complete and never freed.
        let code = unsafe { ffi::sqlite3_vfs_register(vfs, 0) };
        assert_eq!(code, ffi::SQLITE_OK, "SQLite refused the file system");
        Self {
            name,
            shared,
            vfs: AtomicPtr::new(vfs),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: the entry was registered by `new`; it stays allocated for
        // connections that still use it.
        unsafe { ffi::sqlite3_vfs_unregister(self.vfs.load(Ordering::Relaxed)) };
        let mut state = self.shared.state();
        state.retired = true;
        state.disk = Disk::default();
    }
}

/// Runs the body of a callback; a panic must not reach SQLite's frames.
pub(crate) fn shielded(body: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(ffi::SQLITE_IOERR)
}

/// # Safety
///
/// `vfs` is one of ours, as it is whenever SQLite calls one of these callbacks.
unsafe fn app_data<'a>(vfs: *mut ffi::sqlite3_vfs) -> &'a AppData {
    // SAFETY: `new` put an `AppData` there that is never freed or changed.
    unsafe { &*(*vfs).pAppData.cast::<AppData>() }
}

/// Calls a method of the file system below.
///
/// Use it where the arguments are those that SQLite has passed for the same
/// method; then the callee's requirements are met.
macro_rules! below {
    ($inner:expr, $method:ident ($($argument:expr),*), or $missing:expr) => {
        match (*$inner).$method {
            Some(method) => method($inner, $($argument),*),
            None => $missing,
        }
    };
}

unsafe extern "C" fn open(
    vfs: *mut ffi::sqlite3_vfs,
    path: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite passes `szOsFile` writable bytes, aligned for pointers. A
    // file without methods is not closed when opening fails.
    unsafe { (*file).pMethods = ptr::null() };
    shielded(|| {
        // SAFETY: SQLite calls this with our own entry.
        let AppData { shared, inner } = unsafe { app_data(vfs) };
        // SAFETY: SQLite passes null or a path that lives until the file is
        // closed.
        let path_on_disk = unsafe { path_of(path) };
        let mut state = shared.state();
        if let Verdict::Fail(code) = state.faults.judge(Kind::Open) {
            return code;
        }
        let existed = path_on_disk.as_deref().is_some_and(Path::exists);

        let below = ShimFile::inner(file);
        // SAFETY: `szOsFile` has room for the inner file behind ours; the other
        // arguments are SQLite's.
        let code = unsafe {
            (*below).pMethods = ptr::null();
            below!(*inner, xOpen(path, below, flags, out_flags), or ffi::SQLITE_CANTOPEN)
        };
        if code != ffi::SQLITE_OK {
            // SAFETY: a file that has methods after a failed open is closed.
            unsafe { io::close_inner(below) };
            return code;
        }

        let kept = flags & KEPT != 0 && flags & ffi::SQLITE_OPEN_DELETEONCLOSE == 0;
        let mut model = None;
        if let Some(path) = path_on_disk.filter(|_| kept && !state.retired) {
            if flags & ffi::SQLITE_OPEN_MAIN_DB != 0 {
                adopt_companions(&mut state.disk, &path);
            }
            let id = match state.disk.find(&path) {
                Some(id) if existed => id,
                // SAFETY: the inner file was just opened.
                _ if existed => match unsafe { io::read_all(below) } {
                    Ok(contents) => state.disk.adopt(&path, contents),
                    Err(code) => {
                        // SAFETY: as above; it is not used any more.
                        unsafe { io::close_inner(below) };
                        return code;
                    }
                },
                _ => state.disk.create(&path),
            };
            state.disk.opened(id);
            model = Some((id, path));
        }
        let open = OpenFile {
            shared: Arc::clone(shared),
            model: model.as_ref().map(|(id, _)| *id),
            directory_to_sync: model
                .filter(|_| flags & SYNCS_DIRECTORY != 0 && flags & ffi::SQLITE_OPEN_CREATE != 0)
                .and_then(|(_, path)| Some(path.parent()?.to_owned())),
        };
        // SAFETY: `file` is ours to fill.
        unsafe { ShimFile::fill(file, open) };
        ffi::SQLITE_OK
    })
}

/// Takes over the journal and the log of a database that was there before:
/// SQLite opens them later, but a power cut must find them from now on.
fn adopt_companions(disk: &mut Disk, database: &Path) {
    for suffix in ["-journal", "-wal"] {
        let mut path = database.as_os_str().to_owned();
        path.push(suffix);
        adopt_if_unknown(disk, Path::new(&path));
    }
}

/// Not for database files: closing the handle would drop the locks that other
/// handles of this process have on the file.
fn adopt_if_unknown(disk: &mut Disk, path: &Path) -> Option<FileId> {
    if let Some(id) = disk.find(path) {
        return Some(id);
    }
    let contents = fs::read(path).ok()?;
    Some(disk.adopt(path, contents))
}

unsafe extern "C" fn delete(
    vfs: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    sync_directory: c_int,
) -> c_int {
    shielded(|| {
        // SAFETY: SQLite calls this with our own entry.
        let AppData { shared, inner } = unsafe { app_data(vfs) };
        let mut state = shared.state();
        let verdict = state.faults.judge(Kind::Delete);
        if let Verdict::Fail(code) = verdict {
            return code;
        }
        // SAFETY: SQLite passes a path.
        let path_on_disk = unsafe { path_of(path) }.filter(|_| !state.retired);
        if let Some(path) = &path_on_disk {
            adopt_if_unknown(&mut state.disk, path);
        }
        // SAFETY: the arguments are SQLite's.
        let code = unsafe { below!(*inner, xDelete(path, 0), or ffi::SQLITE_IOERR_DELETE) };
        if code != ffi::SQLITE_OK {
            return code;
        }
        if let Some(path) = &path_on_disk {
            state.disk.delete(path);
            if sync_directory & 1 != 0
                && let Some(directory) = path.parent()
            {
                state.disk.sync_directory(directory);
            }
        }
        match verdict {
            Verdict::FailAfterwards(code) => code,
            Verdict::Pass | Verdict::Fail(_) => ffi::SQLITE_OK,
        }
    })
}

/// # Safety
///
/// `path` is null or a C string.
unsafe fn path_of(path: *const c_char) -> Option<PathBuf> {
    if path.is_null() {
        return None;
    }
    // SAFETY: by the contract of this function.
    let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
    Some(PathBuf::from(OsStr::from_bytes(bytes)))
}

unsafe extern "C" fn access(
    vfs: *mut ffi::sqlite3_vfs,
    path: *const c_char,
    flags: c_int,
    found: *mut c_int,
) -> c_int {
    shielded(|| {
        // SAFETY: SQLite calls this with our own entry.
        let AppData { shared, inner } = unsafe { app_data(vfs) };
        let verdict = shared.state().faults.judge(Kind::Access);
        if let Verdict::Fail(code) = verdict {
            return code;
        }
        // SAFETY: the arguments are SQLite's.
        unsafe { below!(*inner, xAccess(path, flags, found), or ffi::SQLITE_IOERR_ACCESS) }
    })
}

unsafe extern "C" fn sleep(vfs: *mut ffi::sqlite3_vfs, microseconds: c_int) -> c_int {
    shielded(|| {
        // SAFETY: SQLite calls this with our own entry.
        let AppData { shared, inner } = unsafe { app_data(vfs) };
        if shared.state().faults.plays_busy() {
            return microseconds;
        }
        // SAFETY: the arguments are SQLite's.
        unsafe { below!(*inner, xSleep(microseconds), or 0) }
    })
}

/// Defines callbacks that do nothing but call the file system below.
macro_rules! passed_on {
    ($($name:ident => $method:ident($($argument:ident: $kind:ty),*) -> $result:ty, or $missing:expr;)*) => {$(
        unsafe extern "C" fn $name(
            vfs: *mut ffi::sqlite3_vfs,
            $($argument: $kind),*
        ) -> $result {
            // SAFETY: SQLite calls this with our own entry and with arguments
            // that fit the method.
            unsafe {
                let inner = app_data(vfs).inner;
                below!(inner, $method($($argument),*), or $missing)
            }
        }
    )*};
}

type Symbol = Option<unsafe extern "C" fn(*mut ffi::sqlite3_vfs, *mut c_void, *const c_char)>;

passed_on! {
    full_pathname => xFullPathname(path: *const c_char, room: c_int, full: *mut c_char) -> c_int,
        or ffi::SQLITE_CANTOPEN;
    dl_open => xDlOpen(path: *const c_char) -> *mut c_void, or ptr::null_mut();
    dl_error => xDlError(room: c_int, message: *mut c_char) -> (), or ();
    dl_close => xDlClose(library: *mut c_void) -> (), or ();
    randomness => xRandomness(amount: c_int, bytes: *mut c_char) -> c_int, or 0;
    current_time => xCurrentTime(day: *mut f64) -> c_int, or ffi::SQLITE_ERROR;
    last_error => xGetLastError(room: c_int, message: *mut c_char) -> c_int, or 0;
    current_time_int64 => xCurrentTimeInt64(millisecond: *mut ffi::sqlite3_int64) -> c_int,
        or ffi::SQLITE_ERROR;
}

unsafe extern "C" fn dl_sym(
    vfs: *mut ffi::sqlite3_vfs,
    library: *mut c_void,
    symbol: *const c_char,
) -> Symbol {
    // SAFETY: SQLite calls this with our own entry and with a library that
    // `dl_open` returned.
    unsafe {
        let inner = app_data(vfs).inner;
        below!(inner, xDlSym(library, symbol), or None)
    }
}
