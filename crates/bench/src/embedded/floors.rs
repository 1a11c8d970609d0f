//! The floors: what the disk, and bare tables on it, can do at best.
//!
//! A floor is measured when the first row asks for it, so that both are near
//! each other in time.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use fleethold_store::{MessageId, Random};
use rusqlite::{Connection, params};
use tempfile::TempDir;

use crate::embedded::measure::rates;
use crate::embedded::samples::Kind;
use crate::embedded::{Row, Scale, disk};
use crate::figures::median;

/// The key of a bare table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Sequential,
    Random,
}

impl Key {
    fn schema(self) -> &'static str {
        match self {
            Self::Sequential => "CREATE TABLE floor (k INTEGER PRIMARY KEY, id, value)",
            Self::Random => "CREATE TABLE floor (id PRIMARY KEY, value) WITHOUT ROWID",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sequential => "(a) table, sequential key",
            Self::Random => "(b) table, random key",
        }
    }
}

/// What a floor's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub(crate) rows_per_transaction: u32,
    /// Besides the id.
    pub(crate) row_bytes: usize,
}

impl Shape {
    /// As many rows per transaction as a call has messages, with their bytes.
    pub(crate) fn of(messages: u32, kind: Kind, payload_bytes: usize) -> Self {
        Self {
            rows_per_transaction: messages,
            row_bytes: kind.row_bytes(payload_bytes),
        }
    }
}

/// Rates of the floors that were asked for, in rows or syncs per second.
pub(crate) struct Floors {
    scale: Scale,
    directory: PathBuf,
    random: Arc<Random>,
    templates: BTreeMap<Key, Table>,
    tables: BTreeMap<(Shape, Key), Vec<f64>>,
    /// Appended and overwritten blocks.
    syncs: Option<[Vec<f64>; 2]>,
}

impl Floors {
    pub(crate) fn new(scale: Scale, directory: &Path, random: Arc<Random>) -> Self {
        Self {
            scale,
            directory: directory.to_owned(),
            random,
            templates: BTreeMap::new(),
            tables: BTreeMap::new(),
            syncs: None,
        }
    }

    /// Returns how often `rate`, in rows per second, is that of each floor.
    ///
    /// The third is the rate of calls, each as many rows as the shape says,
    /// over that of syncs.
    pub(crate) async fn ratios(&mut self, shape: Shape, rate: f64) -> Result<[f64; 3]> {
        let syncs = self.syncs().await?;
        let calls = rate / f64::from(shape.rows_per_transaction);
        Ok([
            rate / self.table(shape, Key::Sequential).await?,
            rate / self.table(shape, Key::Random).await?,
            calls / syncs,
        ])
    }

    async fn table(&mut self, shape: Shape, key: Key) -> Result<f64> {
        if let Some(known) = self.tables.get(&(shape, key)) {
            return Ok(median(known));
        }
        if !self.templates.contains_key(&key) {
            let mut table = Table::create(&self.directory, key)?;
            let call = Shape {
                rows_per_transaction: 1_000,
                row_bytes: Kind::Processed.row_bytes(0),
            };
            for _ in 0..self.scale.prefill.div_ceil(call.rows_per_transaction) {
                table.insert(&self.random, call, 1)?;
            }
            table.checkpoint()?;
            self.templates.insert(key, table);
        }
        let mut table = self.templates[&key].copy(&self.directory)?;
        let transactions = rates(self.scale, async |transactions| {
            table.insert(&self.random, shape, transactions)
        })
        .await?;
        let rows = transactions
            .into_iter()
            .map(|rate| rate * f64::from(shape.rows_per_transaction))
            .collect::<Vec<_>>();
        let rate = median(&rows);
        self.tables.insert((shape, key), rows);
        Ok(rate)
    }

    async fn syncs(&mut self) -> Result<f64> {
        if self.syncs.is_none() {
            let mut file = tempfile::tempfile_in(&self.directory)?;
            let appended = rates(self.scale, async |n| disk::append(&mut file, n)).await?;
            let mut file: File = tempfile::tempfile_in(&self.directory)?;
            let overwritten = rates(self.scale, async |n| disk::overwrite(&mut file, n)).await?;
            self.syncs = Some([appended, overwritten]);
        }
        Ok(median(&self.syncs.as_ref().expect("measured above")[0]))
    }

    /// Returns what was measured.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let tables = self.tables.iter().map(|((shape, key), samples)| Row {
            group: "floors",
            name: format!(
                "{}: {} × {} B",
                key.name(),
                shape.rows_per_transaction,
                shape.row_bytes + MessageId::BYTES
            ),
            unit: "rows/s",
            samples: samples.clone(),
            ratios: None,
        });
        let syncs = self.syncs.iter().flat_map(|[appended, overwritten]| {
            [
                ("(c) fdatasync after 4 KiB appended", appended),
                ("fdatasync after 4 KiB overwritten", overwritten),
            ]
        });
        let syncs = syncs.map(|(name, samples)| Row {
            group: "floors",
            name: name.into(),
            unit: "syncs/s",
            samples: samples.clone(),
            ratios: None,
        });
        tables.chain(syncs).collect()
    }
}

/// A bare table with the durability and the settings of the store.
struct Table {
    directory: TempDir,
    connection: Connection,
}

impl Table {
    fn create(directory: &Path, key: Key) -> Result<Self> {
        let directory = tempfile::tempdir_in(directory)?;
        let table = Self::open(directory)?;
        table.connection.execute_batch(key.schema())?;
        Ok(table)
    }

    fn open(directory: TempDir) -> Result<Self> {
        let connection = Connection::open(directory.path().join("floor.db"))?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             PRAGMA wal_autocheckpoint = 4000; PRAGMA cache_size = -65536;",
        )?;
        Ok(Self {
            directory,
            connection,
        })
    }

    fn checkpoint(&self) -> Result<()> {
        Ok(self
            .connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")?)
    }

    fn copy(&self, directory: &Path) -> Result<Self> {
        let directory = tempfile::tempdir_in(directory)?;
        let to = directory.path().join("floor.db");
        disk::copy(&self.directory.path().join("floor.db"), &to)?;
        Self::open(directory)
    }

    fn insert(
        &mut self,
        random: &Random,
        shape: Shape,
        transactions: u32,
    ) -> Result<std::time::Duration> {
        let value = vec![9_u8; shape.row_bytes];
        let ids: Vec<_> = (0..shape.rows_per_transaction * transactions)
            .map(|_| MessageId::random(random))
            .collect();
        let start = Instant::now();
        for ids in ids.chunks(usize::try_from(shape.rows_per_transaction)?) {
            let transaction = self.connection.transaction()?;
            let mut insert = transaction.prepare_cached(INSERT)?;
            for id in ids {
                insert.execute(params![id.as_bytes(), value])?;
            }
            drop(insert);
            transaction.commit()?;
        }
        Ok(start.elapsed())
    }
}

const INSERT: &str = "INSERT INTO floor (id, value) VALUES (?1, ?2)";
