//! Moving, checking and measuring all that is stored, and removing what is old.

mod check;
mod export;
mod import;
mod leases;
mod old;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use fleethold_store::Result;
use fleethold_store::maintenance::{
    Cursor, Finding, Lease, Maintenance, Old, Page, Progress, Removed, Row, Sizes, Table,
};

use crate::PostgresStore;

#[async_trait]
impl Maintenance for PostgresStore {
    async fn export_rows(
        &self,
        table: Table,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page> {
        export::page(&self.shared, table, after, limit).await
    }

    async fn import_rows(
        &self,
        rows: &[Row],
        before: Option<&Progress>,
        after: &Progress,
    ) -> Result<()> {
        const OPERATION: &str = "import_rows";
        self.shared
            .write_many(OPERATION, |tx| async move {
                let stored = import::progress(&tx).await?;
                // An earlier run of this call, whose commit was lost.
                if tx.replays() && stored.as_ref() == Some(after) {
                    return Ok(());
                }
                Progress::check(OPERATION, stored.as_ref(), before)?;
                import::remember(&tx, OPERATION, before, after).await?;
                import::rows(&self.shared, &tx, OPERATION, rows).await
            })
            .await
    }

    async fn imported(&self) -> Result<Option<Progress>> {
        self.shared
            .write("imported", |tx| async move { import::progress(&tx).await })
            .await
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        check::findings(&self.shared).await
    }

    async fn sizes(&self) -> Result<Sizes> {
        check::sizes(&self.shared).await
    }

    async fn hold_lease(
        &self,
        name: &str,
        holder: u64,
        duration: Duration,
    ) -> Result<Option<Lease>> {
        leases::hold(&self.shared, name, holder, duration).await
    }

    async fn remove_old(
        &self,
        what: Old,
        before: SystemTime,
        after: Option<&Cursor>,
        limit: usize,
        lease: &Lease,
    ) -> Result<Removed> {
        let step = old::Step {
            what,
            before,
            after: after.map_or(&[][..], |place| &place[..]),
            limit,
            lease,
        };
        step.run(&self.shared).await
    }
}
