//! Files that appear whole or not at all, and that nobody but their owner could ever read if they are secret.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// What a file is called before it is in its place, after the name it will have.
const TEMPORARY: &str = ".fleethold.tmp";

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    Everybody,
    Owner,
}

impl Readers {
    /// Returns the mode of a new file.
    pub(crate) fn mode(self) -> u32 {
        match self {
            Self::Everybody => 0o644,
            Self::Owner => 0o600,
        }
    }
}

/// A file that is written and waits beside its place; removed again unless it gets there.
#[derive(Debug)]
pub(crate) struct Staged {
    temporary: PathBuf,
    place: PathBuf,
    placed: bool,
}

impl Staged {
    /// Writes `bytes` durably beside `path`.
    ///
    /// A new file is the writer's; one that replaces another has its owner and mode, but never lets everybody read a secret.
    pub(crate) fn new(path: &Path, readers: Readers, bytes: &[u8]) -> io::Result<Self> {
        // A link stays, and leads to the new file.
        let place = match fs::canonicalize(path) {
            Ok(place) => place,
            Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(error),
        };
        let old = match fs::metadata(&place) {
            Ok(old) if !old.is_file() => return Err(io::Error::other("it is not a file")),
            Ok(old) => Some(old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut temporary = place.as_os_str().to_owned();
        temporary.push(TEMPORARY);
        let temporary = PathBuf::from(temporary);
        // What a crash has left may have another mode.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(readers.mode())
            .open(&temporary)?;
        let staged = Self {
            temporary,
            place,
            placed: false,
        };
        file.write_all(bytes)?;
        if let Some(old) = old {
            like(&file, &old, readers)?;
        }
        file.sync_all()?;
        Ok(staged)
    }

    /// Puts the file into its place, durably: after a crash there is the old file or the new one.
    pub(crate) fn place(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.place)?;
        self.placed = true;
        let parent = self.place.parent().expect("a file lies in a directory");
        File::open(parent)?.sync_all()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Puts `bytes` in the place of a file.
pub(crate) fn replace(path: &Path, readers: Readers, bytes: &[u8]) -> io::Result<()> {
    Staged::new(path, readers, bytes)?.place()
}

/// Gives a file the owner and mode of the one it will replace.
fn like(file: &File, old: &fs::Metadata, readers: Readers) -> io::Result<()> {
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        fchown(file, Some(old.uid()), Some(old.gid()))?;
    }
    let allowed = match readers {
        Readers::Everybody => 0o777,
        Readers::Owner => 0o770,
    };
    file.set_permissions(fs::Permissions::from_mode(old.mode() & allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn p_217_new_files_have_their_mode_before_they_have_content() {
        let dir = tempfile::tempdir().unwrap();
        for (readers, expected) in [(Readers::Owner, 0o600), (Readers::Everybody, 0o644)] {
            let path = dir.path().join(format!("{expected:o}"));
            let staged = Staged::new(&path, readers, b"new").unwrap();
            assert_eq!(mode(&staged.temporary), expected);
            assert!(!path.exists());
            staged.place().unwrap();
            assert_eq!(mode(&path), expected);
            assert_eq!(fs::read(&path).unwrap(), b"new");
        }
    }

    #[test]
    fn a_replaced_file_keeps_its_mode_but_no_secret_is_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for (before, readers, after) in [
            (0o640, Readers::Owner, 0o640),
            (0o644, Readers::Owner, 0o640),
            (0o600, Readers::Everybody, 0o600),
        ] {
            fs::write(&path, "old").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).unwrap();
            replace(&path, readers, b"new").unwrap();
            assert_eq!(mode(&path), after, "{before:o}");
            assert_eq!(fs::read(&path).unwrap(), b"new");
        }
    }

    #[test]
    fn what_never_got_to_its_place_leaves_nothing_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        fs::write(dir.path().join("file.fleethold.tmp"), "left by a crash").unwrap();
        fs::write(dir.path().join("file.tmp"), "of somebody else").unwrap();
        drop(Staged::new(&path, Readers::Owner, b"new").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["file", "file.tmp"]);
    }

    #[test]
    fn links_stay_and_lead_to_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (target, link) = (dir.path().join("target"), dir.path().join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink("target", &link).unwrap();
        replace(&link, Readers::Everybody, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&target).unwrap(), b"new");
    }

    #[test]
    fn only_files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let error = replace(dir.path(), Readers::Everybody, b"new").unwrap_err();
        assert_eq!(error.to_string(), "it is not a file");
    }
}
