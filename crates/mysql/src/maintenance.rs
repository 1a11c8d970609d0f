//! Moving, checking and measuring all that is stored, and removing what is old.

mod check;
mod export;
mod import;
mod leases;
mod old;
mod records;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use fleethold_store::Result;
use fleethold_store::maintenance::{
    Cursor, Finding, Lease, Maintenance, Old, Page, Progress, Removed, Row, Sizes, Table,
};
use futures::FutureExt;

use crate::MysqlStore;
use crate::transaction::Replay;

pub(crate) use self::records::Ahead;

#[async_trait]
impl Maintenance for MysqlStore {
    async fn export_rows(
        &self,
        table: Table,
        after: Option<&Cursor>,
        limit: usize,
    ) -> Result<Page> {
        if table == Table::Usage {
            return records::page(self, after, limit).await;
        }
        let after = after.cloned().unwrap_or_default();
        self.shared
            .read(
                export::OPERATION,
                (after, limit),
                move |(after, limit), tx| {
                    async move { export::page(tx, table, after, *limit).await }.boxed()
                },
            )
            .await
    }

    async fn import_rows(
        &self,
        rows: &[Row],
        before: Option<&Progress>,
        after: &Progress,
    ) -> Result<()> {
        import::check(&self.shared.context, rows)?;
        if import::begins_links(before) {
            import::add_index(self).await?;
        }
        let arguments = (rows.to_vec(), before.cloned(), after.clone());
        self.shared
            .write(
                import::OPERATION,
                Replay::Safe,
                arguments,
                |(rows, before, after), tx| {
                    async move { import::page(tx, rows, before.as_ref(), after).await }.boxed()
                },
            )
            .await?;
        if import::ends_links(before, after) {
            import::drop_index(self).await?;
        }
        Ok(())
    }

    async fn imported(&self) -> Result<Option<Progress>> {
        self.shared
            .read("imported", (), |(), tx| {
                async move { import::imported(tx).await }.boxed()
            })
            .await
    }

    async fn check(&self) -> Result<Vec<Finding>> {
        self.shared
            .read("check", (), |(), tx| {
                async move { check::findings(tx).await }.boxed()
            })
            .await
    }

    async fn sizes(&self) -> Result<Sizes> {
        self.shared
            .read("sizes", (), |(), tx| {
                async move { check::sizes(tx).await }.boxed()
            })
            .await
    }

    async fn hold_lease(
        &self,
        name: &str,
        holder: u64,
        duration: Duration,
    ) -> Result<Option<Lease>> {
        let arguments = (name.to_owned(), holder, duration);
        self.shared
            .write(
                "hold_lease",
                Replay::Safe,
                arguments,
                |(name, holder, duration), tx| {
                    async move { leases::hold(tx, name, *holder, *duration).await }.boxed()
                },
            )
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
        let step = old::Step {
            what,
            before,
            after: after.cloned().unwrap_or_default(),
            limit,
            lease: lease.clone(),
        };
        self.shared
            .write(old::OPERATION, Replay::Safe, step, |step, tx| {
                async move { step.run(tx).await }.boxed()
            })
            .await
    }
}
