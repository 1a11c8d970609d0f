//! Moving, checking and measuring all that is stored.

mod check;
mod export;
mod import;
mod old;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use fleethold_store::Result;
use fleethold_store::maintenance::{
    Cursor, Finding, Lease, Maintenance, Old, Page, Progress, Removed, Row, Sizes, Table,
};

use crate::SqliteStore;

#[async_trait]
impl Maintenance for SqliteStore {
    async fn export_rows(
        &self,
        table: Table,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page> {
        let after = after.cloned();
        self.shared
            .read("export_rows", move |connection| {
                export::page(connection, table, after.as_ref(), limit)
            })
            .await
    }

    async fn import_rows(
        &self,
        rows: &[Row],
        before: Option<&Progress>,
        after: &Progress,
    ) -> Result<()> {
        const OPERATION: &str = "import_rows";
        self.shared.check_open(OPERATION)?;
        let (rows, before, after) = (rows.to_vec(), before.cloned(), after.clone());
        self.shared
            .writer
            .run_large(OPERATION, move |tx| {
                let stored = import::progress(tx)?;
                Progress::check(OPERATION, stored.as_ref(), before.as_ref())?;
                import::rows(tx, OPERATION, &rows)?;
                import::remember(tx, &after)
            })
            .await
    }

    async fn imported(&self) -> Result<Option<Progress>> {
        self.shared.read("imported", import::progress).await
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        self.shared.read("check", check::findings).await
    }

    async fn sizes(&self) -> Result<Sizes> {
        self.shared.read("sizes", check::sizes).await
    }

    async fn hold_lease(
        &self,
        name: &str,
        holder: u64,
        duration: Duration,
    ) -> Result<Option<Lease>> {
        let name = name.to_owned();
        self.shared
            .write("hold_lease", move |tx| {
                old::hold_lease(tx, &name, holder, duration)
            })
            .await
    }

    async fn remove_old(
        &self,
        what: Old,
        before: SystemTime,
        after: Option<&Cursor>,
        limit: usize,
        lease: &Lease,
    ) -> Result<Removed> {
        const OPERATION: &str = "remove_old";
        let step = old::Step {
            what,
            before,
            after: after.cloned(),
            limit,
        };
        let lease = lease.clone();
        self.shared
            .write(OPERATION, move |tx| {
                old::remove(tx, OPERATION, &step, &lease)
            })
            .await
    }
}
