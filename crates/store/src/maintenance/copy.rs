//! Copying all rows of one store to another.

use super::{Maintenance, Progress, Table};
use crate::error::Error;

/// How many rows are read and written at a time.
const PAGE: usize = 500;

/// Why a copy has stopped. What was copied stays, and the next one goes on there.
#[derive(Debug)]
#[non_exhaustive]
pub enum CopyError {
    /// The source could not be read.
    Source(Error),
    /// The target could not be read or written.
    Target(Error),
    /// The target holds rows that this copy has not brought.
    NotEmpty,
    /// The target holds part of a copy of this other source.
    OtherSource(String),
}

impl std::fmt::Display for CopyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Source(_) => f.write_str("the store to copy from failed"),
            Self::Target(_) => f.write_str("the store to copy to failed"),
            Self::NotEmpty => f.write_str(
                "the store to copy to is not empty; copy to a new one, nothing was changed",
            ),
            Self::OtherSource(source) => write!(
                f,
                "the store to copy to holds part of a copy of {source}; finish that one or copy \
                 to a new store, nothing was changed"
            ),
        }
    }
}

impl std::error::Error for CopyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Source(error) | Self::Target(error) => Some(error),
            Self::NotEmpty | Self::OtherSource(_) => None,
        }
    }
}

/// Copies all rows of `from`, which `source` names, to `to`, and tells `report`
/// after each page.
///
/// Each page is written in one transaction together with the place in the
/// source, so a copy that was interrupted goes on where it was and copies
/// nothing twice. One that was finished before copies nothing.
///
/// # Errors
/// See [`CopyError`].
pub async fn copy(
    from: &dyn Maintenance,
    source: &str,
    to: &dyn Maintenance,
    mut report: impl FnMut(&Progress),
) -> Result<Progress, CopyError> {
    let (mut before, mut progress) = begin(source, to).await?;
    while let Some(table) = progress.table {
        let page = from
            .export_rows(table, progress.cursor.as_ref(), PAGE)
            .await
            .map_err(CopyError::Source)?;
        progress.rows += page.rows.len() as u64;
        if page.next.is_none() {
            progress.table = Table::ALL.into_iter().find(|other| *other > table);
        }
        progress.cursor = page.next;
        to.import_rows(&page.rows, before.as_ref(), &progress)
            .await
            .map_err(CopyError::Target)?;
        report(&progress);
        before = Some(progress.clone());
    }
    Ok(progress)
}

/// Returns what the target remembers, and where to begin.
async fn begin(
    source: &str,
    to: &dyn Maintenance,
) -> Result<(Option<Progress>, Progress), CopyError> {
    match to.imported().await.map_err(CopyError::Target)? {
        Some(progress) if progress.source == source => Ok((Some(progress.clone()), progress)),
        Some(progress) => Err(CopyError::OtherSource(progress.source)),
        None => {
            for table in Table::ALL {
                let page = to.export_rows(table, None, 1).await;
                if !page.map_err(CopyError::Target)?.rows.is_empty() {
                    return Err(CopyError::NotEmpty);
                }
            }
            let begin = Progress {
                source: source.to_owned(),
                table: Some(Table::ALL[0]),
                cursor: None,
                rows: 0,
            };
            Ok((None, begin))
        }
    }
}
