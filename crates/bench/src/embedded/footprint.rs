//! Bytes on disk per message: the size of the closed database.

use anyhow::Result;

use crate::embedded::bed::Bed;
use crate::embedded::samples::{Kind, Samples};
use crate::embedded::{Bench, Row};

pub(crate) async fn measure(bench: &mut Bench<'_>) -> Result<()> {
    let count = bench.scale.footprint;
    for kind in [
        Kind::Processed,
        Kind::ForServer,
        Kind::ForOneClient,
        Kind::ForClients,
    ] {
        let name = name(kind);
        bench.begin(&name);
        let bed = Bed::new(bench).await?;
        bed.fill(&Samples::new(kind, 100), kind, count).await?;
        let closed = bed.finish(count.into()).await?;
        let size = u32::try_from(std::fs::metadata(&closed.path)?.len())?;
        bench.rows.push(Row {
            group: "disk",
            name,
            unit: "bytes",
            samples: vec![f64::from(size) / f64::from(count)],
            ratios: None,
        });
    }
    Ok(())
}

pub(crate) fn name(kind: Kind) -> String {
    let contact = if kind.comes_with_contact() {
        ", with contact"
    } else {
        ""
    };
    format!("100-byte message {}{contact}", kind.name())
}
