//! Resource usage of clients.

use std::time::Duration;

use fleethold_proto::Timestamp;
use fleethold_proto::fleetspeak::monitoring::{AggregatedResourceUsage, ResourceUsageData};
use fleethold_proto::fleetspeak::server::ClientResourceUsageRecord;
use fleethold_store::{Clock, ErrorKind, clock};

use crate::checks::{assert_refused, assert_same};
use crate::samples::{C1, C2, seconds, usage_report};
use crate::{Bed, cases};

const MIB: f64 = 1_048_576.0;

cases![
    b_073_to_078_usage_is_found_by_its_time,
    f_21_absent_usage_counts_as_zero,
    f_21_numbers_out_of_range_saturate,
    fractions_are_truncated,
    f_21_times_out_of_range_saturate,
    usage_without_valid_times_is_refused,
    usage_of_an_unknown_client_is_not_found,
    overlong_scope_is_cut,
    f_22_records_are_fetched_by_time_received,
    f_22_range_of_a_fetch_must_be_valid,
];

async fn b_073_to_078_usage_is_found_by_its_time(bed: Bed) {
    bed.clock.advance(Duration::from_nanos(987_654_321));
    bed.add_client(C1).await;
    let before = clock::timestamp(bed.clock.now());
    bed.clock.advance(Duration::from_millis(3));
    let report = usage_report();
    record(&bed, &report).await;

    let minute_later = Timestamp {
        seconds: before.seconds + 60,
        ..before
    };
    let found = bed
        .store
        .fetch_resource_usage_records(C1, &before, &minute_later)
        .await
        .unwrap();
    let received = clock::timestamp(bed.clock.now());
    let expected = ClientResourceUsageRecord {
        scope: "test-scope".into(),
        pid: 1234,
        process_start_time: report.process_start_time,
        client_timestamp: report.data_timestamp,
        server_timestamp: Some(received),
        process_terminated: true,
        mean_user_cpu_rate: 50.0,
        max_user_cpu_rate: 60.0,
        mean_system_cpu_rate: 70.0,
        max_system_cpu_rate: 80.0,
        mean_resident_memory_mib: 190,
        max_resident_memory_mib: 200,
        mean_num_fds: 13,
        max_num_fds: 42,
    };
    assert_same("a record equals the report", &found, &[expected]);

    let nanos = clock::timestamp_epoch_nanos(&received).unwrap();
    let [earlier, later] = [nanos - 1, nanos + 1].map(clock::timestamp_from_epoch_nanos);
    let fetch = |start, end| bed.store.fetch_resource_usage_records(C1, start, end);
    let found = fetch(&earlier, &received).await.unwrap();
    assert_same("records before `end` only", &found, &[]);
    assert_refused(
        "`InvalidArgument` for a `start` after `end`",
        fetch(&received, &earlier).await,
        ErrorKind::InvalidArgument,
    );
    let found = fetch(&received, &later).await.unwrap();
    assert_eq!(found.len(), 1, "records at `start` too, to the nanosecond");
    let found = fetch(&received, &received).await.unwrap();
    assert_same("an empty range has no records", &found, &[]);
}

async fn f_21_absent_usage_counts_as_zero(bed: Bed) {
    bed.add_client(C1).await;
    let report = ResourceUsageData {
        resource_usage: None,
        ..usage_report()
    };
    record(&bed, &report).await;
    let expected = ClientResourceUsageRecord {
        scope: report.scope,
        pid: report.pid,
        process_start_time: report.process_start_time,
        client_timestamp: report.data_timestamp,
        server_timestamp: Some(clock::timestamp(bed.clock.now())),
        process_terminated: true,
        ..ClientResourceUsageRecord::default()
    };
    assert_same(
        "absent usage counts as zero",
        &fetch_all(&bed).await,
        &[expected],
    );
}

async fn f_21_numbers_out_of_range_saturate(bed: Bed) {
    bed.add_client(C1).await;
    for (rate, stored_rate, number, stored_number) in [
        (f64::NAN, 0.0, f64::NAN, 0),
        (f64::INFINITY, 0.0, f64::INFINITY, i32::MAX),
        (f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY, i32::MIN),
        (1e300, f32::MAX, 1e300, i32::MAX),
        (-1e300, f32::MIN, -1e300, i32::MIN),
    ] {
        let usage = AggregatedResourceUsage {
            mean_user_cpu_rate: rate,
            max_user_cpu_rate: rate,
            mean_system_cpu_rate: rate,
            max_system_cpu_rate: rate,
            mean_resident_memory: number,
            max_resident_memory: if stored_number < 0 {
                i64::MIN
            } else {
                i64::MAX
            },
            mean_num_fds: number,
            max_num_fds: i32::MIN,
        };
        let report = ResourceUsageData {
            pid: i64::MIN,
            resource_usage: Some(usage),
            ..usage_report()
        };
        bed.clock.advance(Duration::from_secs(1));
        record(&bed, &report).await;
        let all = fetch_all(&bed).await;
        let found = all.last().expect("the record just stored");
        for found in [
            found.mean_user_cpu_rate,
            found.max_user_cpu_rate,
            found.mean_system_cpu_rate,
            found.max_system_cpu_rate,
        ] {
            let contract = format!("a rate of {rate} is no number or saturates");
            assert_same(&contract, &found, &stored_rate);
        }
        for found in [found.mean_resident_memory_mib, found.mean_num_fds] {
            assert_same(&format!("{number} saturates"), &found, &stored_number);
        }
        let extreme = if stored_number < 0 {
            i32::MIN
        } else {
            i32::MAX
        };
        assert_same("memory saturates", &found.max_resident_memory_mib, &extreme);
        assert_same("what fits is kept", &found.max_num_fds, &i32::MIN);
        assert_same("what fits is kept", &found.pid, &i64::MIN);
    }
}

async fn fractions_are_truncated(bed: Bed) {
    bed.add_client(C1).await;
    let usage = AggregatedResourceUsage {
        mean_resident_memory: 1.9 * MIB,
        max_resident_memory: 4 * 1_048_576 - 1,
        mean_num_fds: 2.99,
        ..AggregatedResourceUsage::default()
    };
    let report = ResourceUsageData {
        resource_usage: Some(usage),
        ..usage_report()
    };
    record(&bed, &report).await;
    let found = &fetch_all(&bed).await[0];
    assert_same(
        "bytes become MiB and both are truncated",
        &(
            found.mean_resident_memory_mib,
            found.max_resident_memory_mib,
            found.mean_num_fds,
        ),
        &(1, 3, 2),
    );
}

async fn f_21_times_out_of_range_saturate(bed: Bed) {
    bed.add_client(C1).await;
    let early = Timestamp {
        seconds: -315_619_200,
        nanos: 5,
    };
    let late = Timestamp {
        seconds: 253_402_300_799,
        nanos: 999_999_999,
    };
    let report = ResourceUsageData {
        process_start_time: Some(early),
        data_timestamp: Some(late),
        ..usage_report()
    };
    record(&bed, &report).await;
    let found = &fetch_all(&bed).await[0];
    assert_same(
        "1960 comes back as a valid time",
        &found.process_start_time,
        &Some(early),
    );
    assert_same(
        "the year 9999 saturates in 2262",
        &found.client_timestamp,
        &Some(clock::timestamp_from_epoch_nanos(i64::MAX)),
    );
}

async fn usage_without_valid_times_is_refused(bed: Bed) {
    bed.add_client(C1).await;
    for wrong in [
        None,
        Some(Timestamp {
            seconds: 5,
            nanos: -1,
        }),
        Some(Timestamp {
            seconds: 5,
            nanos: 1_000_000_000,
        }),
        Some(seconds(253_402_300_800)),
        Some(seconds(-62_135_596_801)),
    ] {
        let wrong_start = ResourceUsageData {
            process_start_time: wrong,
            ..usage_report()
        };
        let wrong_data = ResourceUsageData {
            data_timestamp: wrong,
            ..usage_report()
        };
        for report in [wrong_start, wrong_data] {
            assert_refused(
                "`InvalidArgument` if a time is absent or invalid",
                bed.store.record_resource_usage_data(C1, &report).await,
                ErrorKind::InvalidArgument,
            );
        }
    }
    assert_same("nothing is stored then", &fetch_all(&bed).await, &[]);
}

async fn usage_of_an_unknown_client_is_not_found(bed: Bed) {
    assert_refused(
        "`NotFound` for an unknown client",
        bed.store
            .record_resource_usage_data(C1, &usage_report())
            .await,
        ErrorKind::NotFound,
    );
    assert_same(
        "an unknown client has no records",
        &fetch_all(&bed).await,
        &[],
    );
    bed.add_client(C1).await;
    assert_same(
        "a refused record leaves nothing",
        &fetch_all(&bed).await,
        &[],
    );
}

async fn overlong_scope_is_cut(bed: Bed) {
    bed.add_client(C1).await;
    let report = ResourceUsageData {
        scope: "ä".repeat(129),
        ..usage_report()
    };
    record(&bed, &report).await;
    let found = &fetch_all(&bed).await[0].scope;
    assert_same("a scope is cut to 128 characters", found, &"ä".repeat(128));
}

async fn f_22_records_are_fetched_by_time_received(bed: Bed) {
    bed.add_client(C1).await;
    bed.add_client(C2).await;
    for (second, pid) in [(300, 3), (100, 1), (400, 4), (200, 2)] {
        bed.clock.set(second);
        let report = ResourceUsageData {
            pid,
            ..usage_report()
        };
        record(&bed, &report).await;
        bed.store
            .record_resource_usage_data(C2, &report)
            .await
            .unwrap();
    }
    let found = bed
        .store
        .fetch_resource_usage_records(C1, &seconds(200), &seconds(400))
        .await
        .unwrap();
    let found: Vec<_> = found.iter().map(|record| record.pid).collect();
    assert_same(
        "received at or after `start` and before `end`, by time",
        &found,
        &[2, 3],
    );
    assert_eq!(fetch_all(&bed).await.len(), 4);
}

async fn f_22_range_of_a_fetch_must_be_valid(bed: Bed) {
    bed.add_client(C1).await;
    let wrong = Timestamp {
        seconds: 5,
        nanos: -1,
    };
    for (start, end) in [(&wrong, &seconds(9)), (&seconds(1), &wrong)] {
        assert_refused(
            "`InvalidArgument` for an invalid time",
            bed.store.fetch_resource_usage_records(C1, start, end).await,
            ErrorKind::InvalidArgument,
        );
    }
}

async fn record(bed: &Bed, report: &ResourceUsageData) {
    let recorded = bed.store.record_resource_usage_data(C1, report).await;
    recorded.expect("a valid report of a known client");
}

/// Fetches all records of the first client, up to the year 9999.
async fn fetch_all(bed: &Bed) -> Vec<ClientResourceUsageRecord> {
    let found = bed
        .store
        .fetch_resource_usage_records(C1, &seconds(0), &seconds(253_402_300_799))
        .await
        .expect("a valid range");
    for record in &found {
        for time in [
            record.process_start_time,
            record.client_timestamp,
            record.server_timestamp,
        ] {
            let valid = time.as_ref().and_then(clock::timestamp_epoch_nanos);
            assert!(valid.is_some(), "times are valid: {time:?}");
        }
    }
    found
}
