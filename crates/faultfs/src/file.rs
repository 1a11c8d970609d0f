//! The contents of one file: what is certainly on the disk, what was written
//! since, and what of it a power cut may leave.

use std::collections::BTreeMap;

use crate::random::Seeded;

/// What a disk writes at once or not at all.
pub(crate) const SECTOR_BYTES: usize = 512;

/// A file as the disk and the page cache know it together.
#[derive(Debug, Default)]
pub(crate) struct StoredFile {
    /// The contents at the last sync.
    synced: Vec<u8>,
    /// What happened since, in order.
    unsynced: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Truncate { size: usize },
}

impl StoredFile {
    /// A file that was on the disk before anybody looked.
    pub(crate) fn found(contents: Vec<u8>) -> Self {
        Self {
            synced: contents,
            unsynced: Vec::new(),
        }
    }

    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.unsynced.push(Change::Write {
            offset,
            bytes: bytes.to_vec(),
        });
    }

    pub(crate) fn truncate(&mut self, size: usize) {
        self.unsynced.push(Change::Truncate { size });
    }

    pub(crate) fn sync(&mut self) {
        for change in self.unsynced.drain(..) {
            change.apply(&mut self.synced);
        }
    }

    /// One of the contents that a disk may show after the power was cut now.
    ///
    /// With `damage`, sectors that were being written may hold anything.
    pub(crate) fn after_power_cut(&self, random: &mut Seeded, damage: bool) -> Vec<u8> {
        if self.unsynced.is_empty() {
            return self.synced.clone();
        }
        // The extremes are likely mistakes of the program under test and would
        // almost never be met by drawing each sector on its own.
        match random.up_to(7) {
            0 => self.synced.clone(),
            1 => self.after(self.unsynced.len()),
            2 | 3 => self.stopped_in_order(random, damage),
            _ => self.scattered(random, damage),
        }
    }

    fn after(&self, changes: usize) -> Vec<u8> {
        let mut contents = self.synced.clone();
        for change in &self.unsynced[..changes] {
            change.apply(&mut contents);
        }
        contents
    }

    /// Changes reach the disk in order until one of them is torn.
    fn stopped_in_order(&self, random: &mut Seeded, damage: bool) -> Vec<u8> {
        let whole = random.up_to(self.unsynced.len());
        let mut contents = self.after(whole);
        if let Some(Change::Write { offset, bytes }) = self.unsynced.get(whole) {
            let end = offset + bytes.len();
            let first = offset / SECTOR_BYTES;
            let torn = first + random.up_to(end.div_ceil(SECTOR_BYTES) - first);
            let boundary = (torn * SECTOR_BYTES).clamp(*offset, end);
            write_into(&mut contents, *offset, &bytes[..boundary - offset]);
            if damage && boundary < end && random.one_in(2) {
                let size = contents.len().max(end);
                contents.resize(size, 0);
                let start = torn * SECTOR_BYTES;
                fill(&mut contents[start..size.min(start + SECTOR_BYTES)], random);
            }
        }
        contents
    }

    /// Every sector is as old as it likes.
    ///
    /// A sector shows its state after some of the changes to it, in their
    /// order: the page cache never writes a later change without an earlier
    /// one to the same bytes. The size of the file follows the order of all
    /// changes, as in a journalling file system, and no sector shows what was
    /// in it before a truncation that took place, or what was put there after
    /// one that did not.
    fn scattered(&self, random: &mut Seeded, damage: bool) -> Vec<u8> {
        let sizes = self.sizes();
        let happened = random.up_to(self.unsynced.len());
        let percent_newest = [10, 50, 90][random.up_to(2)];
        let largest = sizes.iter().copied().max().unwrap_or_default();
        let mut contents = self.synced.clone();
        contents.resize(largest.next_multiple_of(SECTOR_BYTES), 0);
        for (sector, touching) in self.touched_sectors(largest) {
            let is_truncation =
                |change: usize| matches!(self.unsynced[change], Change::Truncate { .. });
            let oldest = touching
                .iter()
                .rposition(|&change| change < happened && is_truncation(change))
                .map_or(0, |position| position + 1);
            let newest = touching
                .iter()
                .position(|&change| change >= happened && is_truncation(change))
                .unwrap_or(touching.len());
            let version = if random.up_to(99) < percent_newest {
                newest
            } else {
                oldest + random.up_to(newest - oldest)
            };
            let bytes = &mut contents[sector * SECTOR_BYTES..][..SECTOR_BYTES];
            for &change in &touching[..version] {
                self.unsynced[change].apply_to_sector(sector, bytes);
            }
            if damage && newest > oldest && random.one_in(16) {
                fill(bytes, random);
            }
        }
        contents.resize(sizes[happened], 0);
        contents
    }

    /// The size of the file after 0, 1, … all changes.
    fn sizes(&self) -> Vec<usize> {
        let mut size = self.synced.len();
        let mut sizes = vec![size];
        for change in &self.unsynced {
            size = match change {
                Change::Write { offset, bytes } => size.max(offset + bytes.len()),
                Change::Truncate { size } => *size,
            };
            sizes.push(size);
        }
        sizes
    }

    /// The changes to each sector, by their place in the order.
    fn touched_sectors(&self, largest: usize) -> BTreeMap<usize, Vec<usize>> {
        let mut touched = BTreeMap::<_, Vec<_>>::new();
        for (position, change) in self.unsynced.iter().enumerate() {
            let (start, end) = match change {
                Change::Write { offset, bytes } => (*offset, offset + bytes.len()),
                Change::Truncate { size } => (*size, largest),
            };
            for sector in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
                touched.entry(sector).or_default().push(position);
            }
        }
        touched
    }
}

impl Change {
    fn apply(&self, contents: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => write_into(contents, *offset, bytes),
            Self::Truncate { size } => contents.resize(*size, 0),
        }
    }

    fn apply_to_sector(&self, sector: usize, contents: &mut [u8]) {
        let start = sector * SECTOR_BYTES;
        match self {
            Self::Write { offset, bytes } => {
                let from = start.max(*offset);
                let to = (start + SECTOR_BYTES).min(offset + bytes.len());
                contents[from - start..to - start]
                    .copy_from_slice(&bytes[from - offset..to - offset]);
            }
            Self::Truncate { size } => contents[size.saturating_sub(start)..].fill(0),
        }
    }
}

fn write_into(contents: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if contents.len() < end {
        contents.resize(end, 0);
    }
    contents[offset..end].copy_from_slice(bytes);
}

fn fill(bytes: &mut [u8], random: &mut Seeded) {
    for byte in bytes {
        *byte = random.next() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEDS: std::ops::Range<u64> = 0..500;

    fn cuts(file: &StoredFile, damage: bool) -> Vec<Vec<u8>> {
        SEEDS
            .map(|seed| file.after_power_cut(&mut Seeded::new(seed), damage))
            .collect()
    }

    #[test]
    fn synced_contents_survive_every_power_cut() {
        let mut file = StoredFile::default();
        file.write(0, &[1; 2000]);
        file.truncate(1500);
        file.sync();
        for contents in cuts(&file, true) {
            assert_eq!(contents, [1; 1500]);
        }
    }

    #[test]
    fn unsynced_sectors_are_old_or_new_and_every_mixture_is_met() {
        let mut file = StoredFile::found(vec![1; 4 * SECTOR_BYTES]);
        file.write(0, &[2; 4 * SECTOR_BYTES]);
        let mut mixtures = std::collections::BTreeSet::new();
        for contents in cuts(&file, false) {
            assert_eq!(contents.len(), 4 * SECTOR_BYTES);
            let mixture: Vec<u8> = contents
                .chunks(SECTOR_BYTES)
                .map(|sector| {
                    assert!(sector.iter().all(|byte| *byte == sector[0]));
                    sector[0]
                })
                .collect();
            assert!(mixture.iter().all(|byte| [1, 2].contains(byte)));
            mixtures.insert(mixture);
        }
        assert_eq!(mixtures.len(), 16);
    }

    #[test]
    fn a_later_write_may_survive_without_an_earlier_one() {
        let mut file = StoredFile::found(vec![0; 2 * SECTOR_BYTES]);
        file.write(0, &[1; SECTOR_BYTES]);
        file.write(SECTOR_BYTES, &[2; SECTOR_BYTES]);
        assert!(
            cuts(&file, false)
                .iter()
                .any(|contents| contents[0] == 0 && contents[SECTOR_BYTES] == 2)
        );
    }

    #[test]
    fn writes_to_one_sector_survive_in_their_order() {
        let mut file = StoredFile::found(vec![0; SECTOR_BYTES]);
        file.write(0, &[1; 24]);
        file.write(24, &[2; 100]);
        for contents in cuts(&file, false) {
            assert!(contents[24] == 0 || contents[0] == 1);
        }
    }

    #[test]
    fn bytes_cut_off_do_not_come_back_behind_what_was_written_afterwards() {
        let mut file = StoredFile::found(vec![1; 4 * SECTOR_BYTES]);
        file.truncate(0);
        file.write(3 * SECTOR_BYTES, &[2; SECTOR_BYTES]);
        let cuts = cuts(&file, false);
        for contents in &cuts {
            // Old data stands only where the truncation did not take place.
            let old = contents.contains(&1);
            assert!(!old || *contents == vec![1; 4 * SECTOR_BYTES]);
        }
        for size in [0, 4 * SECTOR_BYTES] {
            assert!(cuts.iter().any(|contents| contents.len() == size));
        }
    }

    #[test]
    fn damage_stays_within_the_sectors_being_written() {
        let mut file = StoredFile::found(vec![1; 3 * SECTOR_BYTES]);
        file.write(SECTOR_BYTES + 10, &[2; 10]);
        let cuts = cuts(&file, true);
        for contents in &cuts {
            assert!(contents[..SECTOR_BYTES].iter().all(|byte| *byte == 1));
            assert!(contents[2 * SECTOR_BYTES..].iter().all(|byte| *byte == 1));
        }
        assert!(cuts.iter().any(|contents| contents[SECTOR_BYTES] != 1));
    }
}
