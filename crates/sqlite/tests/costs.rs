//! Counts statements, commits and steps of what happens most.

mod bed;

use std::path::Path;

use bed::{Bed, CLIENT, contact, processed, success, to_client};
use fleethold_store::{ClientId, ClientStore, ContactId, MessageId, MessageStore, ServiceLimits};

const OTHER: ClientId = ClientId::new([2; 8]);

#[tokio::test]
async fn an_idle_poll_is_three_statements_and_one_commit() {
    let bed = Bed::new().await;
    for _ in 0..2 {
        bed.log.clear();
        bed.store.store_contact(&contact(), &[]).await.unwrap();
        let messages = bed
            .store
            .client_messages_for_processing(CLIENT, 100, None)
            .await
            .unwrap();
        assert_eq!(messages, []);
        let statements = bed.log.statements();
        assert!(statements.len() <= 3, "{statements:#?}");
        assert_eq!(bed.log.commits(), 1);
    }
}

#[tokio::test]
async fn a_poll_without_tokens_for_what_waits_commits_only_the_contact() {
    let bed = Bed::new().await;
    let message = to_client(1, CLIENT, "busy");
    bed.store.store_messages(&[message], None).await.unwrap();
    bed.log.clear();
    let limits = ServiceLimits::from([("other".into(), 5)]);
    bed.store.store_contact(&contact(), &[]).await.unwrap();
    let messages = bed
        .store
        .client_messages_for_processing(CLIENT, 100, Some(&limits))
        .await
        .unwrap();
    assert_eq!(messages, []);
    assert_eq!(bed.log.commits(), 1);
}

#[tokio::test]
async fn a_poll_with_a_hundred_processed_messages_is_one_commit_and_reads_nothing_per_message() {
    let bed = Bed::new().await;
    let messages: Vec<_> = (0..100).map(processed).collect();
    bed.store
        .store_contact(&contact(), &messages)
        .await
        .unwrap();
    let statements = bed.log.statements();
    assert_eq!(bed.log.commits(), 1);
    assert_eq!(statements.len(), 2 + 100, "{statements:#?}");
    let is_read = |sql: &&String| {
        sql.lines()
            .any(|line| line.starts_with("SELECT ") && !line.contains('?'))
    };
    assert_eq!(statements.iter().find(is_read), None);
}

#[tokio::test]
async fn client_data_is_one_statement() {
    let bed = Bed::new().await;
    bed.store.get_client_data(CLIENT).await.unwrap();
    assert_eq!(bed.log.statements().len(), 1);
    assert_eq!(bed.log.commits(), 0);
}

#[tokio::test]
async fn calls_without_work_do_not_touch_the_database() {
    let bed = Bed::new().await;
    let nobody = ContactId::from_number(1);
    bed.store.store_messages(&[], Some(&nobody)).await.unwrap();
    bed.store.set_message_results(&[]).await.unwrap();
    bed.store.get_messages(&[], true).await.unwrap();
    bed.store.delete_pending_messages(&[]).await.unwrap();
    bed.store
        .link_messages_to_contact(&nobody, &[])
        .await
        .unwrap();
    assert_eq!(bed.log.statements(), [""; 0]);
}

#[tokio::test]
async fn an_idle_tick_of_the_processor_is_one_statement_and_no_commit() {
    let bed = Bed::new().await;
    bed.store.server_messages_for_processing(100).await.unwrap();
    assert_eq!(bed.log.statements().len(), 1);
    assert_eq!(bed.log.commits(), 0);
}

async fn steps_of_a_claim(bed: &Bed, limits: Option<&ServiceLimits>) -> u64 {
    bed.log.clear();
    let claimed = bed
        .store
        .client_messages_for_processing(CLIENT, 10, limits)
        .await
        .unwrap();
    assert_eq!(claimed.len(), 10);
    bed.log.steps()
}

async fn fill(bed: &Bed, numbers: std::ops::Range<u64>, service: &str) {
    for first in numbers.clone().step_by(1_000) {
        let messages: Vec<_> = (first..numbers.end.min(first + 1_000))
            .map(|number| to_client(number, CLIENT, service))
            .collect();
        bed.store.store_messages(&messages, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_claim_takes_the_same_steps_however_much_waits_or_is_done() {
    let small = Bed::new().await;
    fill(&small, 0..100, "open").await;
    let expected = steps_of_a_claim(&small, None).await;

    let backlog = Bed::new().await;
    fill(&backlog, 0..20_000, "open").await;
    let steps = steps_of_a_claim(&backlog, None).await;
    assert!(steps <= expected + expected / 10, "{steps} for {expected}");

    let history = Bed::new().await;
    fill(&history, 1_000..20_000, "open").await;
    let results: Vec<_> = (1_000..20_000)
        .map(|number| (MessageId::new(bed::id(number)), success()))
        .collect();
    history.store.set_message_results(&results).await.unwrap();
    fill(&history, 0..100, "open").await;
    let steps = steps_of_a_claim(&history, None).await;
    assert!(steps <= expected + expected / 10, "{steps} for {expected}");
}

#[tokio::test]
async fn a_claim_does_not_walk_over_the_backlog_of_a_service_without_tokens() {
    let limits = ServiceLimits::from([("open".into(), 50), ("blocked".into(), 0)]);
    let small = Bed::new().await;
    fill(&small, 0..1, "blocked").await;
    fill(&small, 1_000_000..1_000_100, "open").await;
    let expected = steps_of_a_claim(&small, Some(&limits)).await;

    let blocked = Bed::new().await;
    fill(&blocked, 0..20_000, "blocked").await;
    fill(&blocked, 1_000_000..1_000_100, "open").await;
    let steps = steps_of_a_claim(&blocked, Some(&limits)).await;
    assert!(steps <= expected + expected / 10, "{steps} for {expected}");
}

#[tokio::test]
async fn pending_messages_of_one_client_are_counted_without_those_of_another() {
    let bed = Bed::new().await;
    fill(&bed, 0..5_000, "open").await;
    let message = to_client(9_999, OTHER, "open");
    bed.store.store_messages(&[message], None).await.unwrap();
    bed.log.clear();
    let count = bed.store.get_pending_message_count(&[OTHER]).await.unwrap();
    assert_eq!(count, 1);
    assert!(bed.log.steps() < 1_000, "{}", bed.log.steps());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_stays_short_while_calls_write_and_read() {
    let bed = Bed::new().await;
    for call in 0..60 {
        let messages: Vec<_> = (0..100)
            .map(|number| {
                let mut message = to_client(100 * call + number, CLIENT, "open");
                message.data.as_mut().unwrap().value = vec![1; 10_000].into();
                message
            })
            .collect();
        let (stored, clients) = tokio::join!(
            bed.store.store_messages(&messages, None),
            bed.store.list_clients(&[]),
        );
        stored.unwrap();
        clients.unwrap();
    }
    let bytes = |path: &Path| std::fs::metadata(path).unwrap().len();
    let log = bytes(&bed.path().with_extension("db-wal"));
    assert!(bytes(&bed.path()) > 50_000_000);
    assert!(log < 24_000_000, "{log}");
}
