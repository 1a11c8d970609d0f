//! The directory entries of a disk and which of them outlive a power cut.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use crate::file::StoredFile;
use crate::random::Seeded;

/// A file, whatever it is called and even after it was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId(u64);

/// All files that were opened, with what is known to be on the disk.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: HashMap<FileId, StoredFile>,
    names: BTreeMap<PathBuf, Name>,
    /// How often each file is open. A deleted file lives until it is closed.
    open: HashMap<FileId, usize>,
    next_id: u64,
}

/// What one path leads to.
#[derive(Debug, Default)]
struct Name {
    /// At the last sync of the directory.
    synced: Option<FileId>,
    /// Creations and deletions since, in order.
    unsynced: Vec<Option<FileId>>,
}

impl Name {
    fn current(&self) -> Option<FileId> {
        self.unsynced.last().copied().unwrap_or(self.synced)
    }
}

impl Disk {
    /// The file that a path leads to at present.
    pub(crate) fn find(&self, path: &Path) -> Option<FileId> {
        self.names.get(path)?.current()
    }

    /// Takes over a file that was there before; it counts as synced.
    pub(crate) fn adopt(&mut self, path: &Path, contents: Vec<u8>) -> FileId {
        let id = self.add(StoredFile::found(contents));
        self.names.entry(path.to_owned()).or_default().synced = Some(id);
        id
    }

    /// Creates an empty file, for the time being only in memory.
    pub(crate) fn create(&mut self, path: &Path) -> FileId {
        let id = self.add(StoredFile::default());
        let name = self.names.entry(path.to_owned()).or_default();
        name.unsynced.push(Some(id));
        id
    }

    pub(crate) fn opened(&mut self, id: FileId) {
        *self.open.entry(id).or_default() += 1;
    }

    pub(crate) fn closed(&mut self, id: FileId) {
        if let Some(count) = self.open.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.open.remove(&id);
                self.drop_unreachable();
            }
        }
    }

    pub(crate) fn delete(&mut self, path: &Path) {
        if let Some(name) = self.names.get_mut(path)
            && name.current().is_some()
        {
            name.unsynced.push(None);
        }
    }

    pub(crate) fn write(&mut self, id: FileId, offset: usize, bytes: &[u8]) {
        if let Some(file) = self.files.get_mut(&id) {
            file.write(offset, bytes);
        }
    }

    pub(crate) fn truncate(&mut self, id: FileId, size: usize) {
        if let Some(file) = self.files.get_mut(&id) {
            file.truncate(size);
        }
    }

    /// Makes the contents of a file outlive a power cut, but not its name.
    pub(crate) fn sync(&mut self, id: FileId) {
        if let Some(file) = self.files.get_mut(&id) {
            file.sync();
        }
    }

    /// Makes all creations and deletions in a directory outlive a power cut.
    pub(crate) fn sync_directory(&mut self, directory: &Path) {
        for (path, name) in &mut self.names {
            if path.parent() == Some(directory) {
                name.synced = name.current();
                name.unsynced.clear();
            }
        }
        self.drop_unreachable();
    }

    /// The files that a disk may show after the power was cut now; `None` for
    /// a path that leads nowhere.
    pub(crate) fn after_power_cut(&self, seed: u64, damage: bool) -> BTreeMap<&Path, Vec<u8>> {
        let mut random = Seeded::new(seed);
        let mut found = BTreeMap::new();
        for (path, name) in &self.names {
            let changes = random.up_to(name.unsynced.len());
            let id = match changes {
                0 => name.synced,
                changes => name.unsynced[changes - 1],
            };
            if let Some(file) = id.and_then(|id| self.files.get(&id)) {
                let contents = file.after_power_cut(&mut random, damage);
                found.insert(path.as_path(), contents);
            }
        }
        found
    }

    fn add(&mut self, file: StoredFile) -> FileId {
        let id = FileId(self.next_id);
        self.next_id += 1;
        self.files.insert(id, file);
        id
    }

    fn drop_unreachable(&mut self) {
        self.names
            .retain(|_, name| name.synced.is_some() || !name.unsynced.is_empty());
        let named: HashSet<FileId> = self
            .names
            .values()
            .flat_map(|name| name.unsynced.iter().copied().chain([name.synced]))
            .flatten()
            .collect();
        self.files
            .retain(|id, _| named.contains(id) || self.open.contains_key(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/data/fleet.db";

    fn cuts(disk: &Disk) -> Vec<Option<Vec<u8>>> {
        (0..100)
            .map(|seed| disk.after_power_cut(seed, false).remove(Path::new(PATH)))
            .collect()
    }

    #[test]
    fn created_file_may_vanish_until_its_directory_is_synced() {
        let mut disk = Disk::default();
        let id = disk.create(Path::new(PATH));
        disk.write(id, 0, b"contents");
        disk.sync(id);
        let found = cuts(&disk);
        assert!(found.contains(&None));
        assert!(found.contains(&Some(b"contents".to_vec())));

        disk.sync_directory(Path::new("/data"));
        assert!(
            cuts(&disk)
                .iter()
                .all(|found| found.as_deref() == Some(b"contents"))
        );
    }

    #[test]
    fn deleted_file_may_come_back_until_its_directory_is_synced() {
        let mut disk = Disk::default();
        disk.adopt(Path::new(PATH), b"old".to_vec());
        disk.delete(Path::new(PATH));
        assert_eq!(disk.find(Path::new(PATH)), None);
        let found = cuts(&disk);
        assert!(found.contains(&None) && found.contains(&Some(b"old".to_vec())));

        disk.sync_directory(Path::new("/elsewhere"));
        assert!(cuts(&disk).contains(&Some(b"old".to_vec())));
        disk.sync_directory(Path::new("/data"));
        assert!(cuts(&disk).iter().all(Option::is_none));
    }

    #[test]
    fn files_are_forgotten_when_neither_a_name_nor_a_handle_leads_to_them() {
        let mut disk = Disk::default();
        for _ in 0..3 {
            let id = disk.create(Path::new(PATH));
            disk.opened(id);
            disk.delete(Path::new(PATH));
            disk.sync_directory(Path::new("/data"));
            disk.write(id, 0, b"unnamed");
            assert_eq!(disk.files.len(), 1);
            disk.closed(id);
            assert!(disk.files.is_empty() && disk.names.is_empty() && disk.open.is_empty());
        }
    }
}
