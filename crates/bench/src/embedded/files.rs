//! Files: storing and reading them whole.

use std::time::Instant;

use anyhow::{Result, ensure};
use fleethold_store::FileStore;

use crate::embedded::bed::Bed;
use crate::embedded::floors::Shape;
use crate::embedded::{Bench, Row};
use crate::figures::median;

pub(crate) async fn measure(bench: &mut Bench<'_>) -> Result<()> {
    for size_bytes in bench.scale.files {
        let bed = Bed::new(bench).await?;
        let size = usize::try_from(size_bytes)?;
        bench.begin(&format!("files of {size_bytes} bytes"));
        let content = vec![9; size];
        let (mut stored, mut read) = (Vec::new(), Vec::new());
        // The first one warms the caches.
        for repetition in 0..=bench.scale.repetitions {
            let start = Instant::now();
            let name = format!("file {repetition}");
            bed.store
                .store_file("system", &name, &mut &content[..])
                .await?;
            let time = start.elapsed().as_secs_f64();
            let start = Instant::now();
            let found = bed.store.read_file("system", &name).await?;
            if repetition > 0 {
                stored.push(1.0 / time);
                read.push(1.0 / start.elapsed().as_secs_f64());
            }
            ensure!(found.content == content, "a file has changed");
        }
        bed.finish(0).await?;
        let shape = Shape {
            rows_per_transaction: 1,
            row_bytes: size,
        };
        let ratios = bench.floors.ratios(shape, median(&stored)).await?;
        for (what, samples, ratios) in [("storing", stored, Some(ratios)), ("reading", read, None)]
        {
            bench.rows.push(Row {
                group: "files",
                name: format!("{what} a file of {size_bytes} B"),
                unit: "files/s",
                samples,
                ratios,
            });
        }
    }
    Ok(())
}
