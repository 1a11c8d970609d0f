//! Claims: who hands out a message moves its due time, so that nobody else does.
//!
//! A claim is one statement that finds, locks, moves and reads. Rows that
//! somebody else is claiming are skipped, and the claim is real only after the
//! commit. A claim whose commit was lost finds its messages by its token.

use std::sync::Arc;

use async_trait::async_trait;
use fleethold_proto::fleetspeak::Message;
use fleethold_store::clock::{epoch_micros, timestamp};
use fleethold_store::limits::{MAX_CLAIM_BYTES, MOST_EARLY_CLAIMS};
use fleethold_store::record::ResultRecord;
use fleethold_store::{
    ClaimServerMessages, ClientId, MOST_OVERDUE_COUNTED, MessageId, Result, ServiceLimits,
};
use tokio_postgres::Row;

use crate::Shared;
use crate::query::{BOOL, BYTES, BYTES_LIST, INT, LONG, LONG_LIST, Query, Values, list, number};
use crate::rows;
use crate::together::Waiting;

/// The delays of server messages no longer grow after so many claims.
const MOST_DELAYS: u32 = 100;

impl Shared {
    pub(crate) async fn claim_client_messages(
        self: &Arc<Self>,
        client: ClientId,
        limit: u64,
        service_limits: Option<&ServiceLimits>,
    ) -> Result<Vec<Message>> {
        const OPERATION: &str = "client_messages_for_processing";
        let open = service_limits
            .into_iter()
            .flatten()
            .filter(|(_, limit)| **limit > 0);
        let (services, limits): (Vec<_>, Vec<_>) = open
            .map(|(service, accepted)| (service.as_bytes(), number(limit.min(*accepted))))
            .unzip();
        let accepts_all = service_limits.is_none();
        if limit == 0 || (services.is_empty() && !accepts_all) {
            self.check_open(OPERATION)?;
            return Ok(Vec::new());
        }
        let Waiting::Perhaps(turn) = self.ask(OPERATION, client).await? else {
            return Ok(Vec::new());
        };
        let token = self.token();
        let client = client.as_ref();
        let limit = number(limit);
        let rows = self
            .write(OPERATION, |tx| {
                let (services, limits) = (&services, &limits);
                async move {
                    if tx.replays() {
                        let mine = tx.rows(&MINE_FOR_CLIENT, &[&client, &token]).await?;
                        if !mine.is_empty() {
                            return Ok(mine);
                        }
                    }
                    let now_micros = epoch_micros(self.clock.now());
                    let due_micros = epoch_micros(self.clock.client_retry_time());
                    let values: Values<'_> = &[
                        &client,
                        &now_micros,
                        &limit,
                        services,
                        limits,
                        &accepts_all,
                        &max_bytes(),
                        &due_micros,
                        &token,
                    ];
                    tx.last(&CLAIM_FOR_CLIENT, values).await
                }
            })
            .await?;
        drop(turn);
        self.readable(OPERATION, &rows).await
    }

    pub(crate) async fn release_client_messages(
        &self,
        client: ClientId,
        ids: &[MessageId],
    ) -> Result<()> {
        const OPERATION: &str = "release_messages";
        if ids.is_empty() {
            return self.check_open(OPERATION);
        }
        let now_micros = epoch_micros(self.clock.now());
        let most_claims = i32::try_from(MOST_EARLY_CLAIMS).expect("a few");
        let (client, ids) = (client.as_ref(), list(ids));
        self.write(OPERATION, |tx| {
            let ids = &ids;
            async move {
                let values: Values<'_> = &[&client, ids, &now_micros, &most_claims];
                tx.last(&RELEASE, values).await.map(drop)
            }
        })
        .await
    }

    /// Returns how many messages are overdue for services, up to a limit, and
    /// since when the oldest is.
    pub(crate) async fn overdue_for_server(&self, now_micros: i64) -> Result<(u64, Option<i64>)> {
        let values: Values<'_> = &[&now_micros, &number(MOST_OVERDUE_COUNTED)];
        let rows = self.read("stats", &OVERDUE_FOR_SERVER, values).await?;
        Ok(rows.first().map_or((0, None), |row| {
            (row.get::<_, i64>(0).cast_unsigned(), row.get(1))
        }))
    }

    /// Returns the claimed messages that can be read; fails the others, so that
    /// they are not claimed for ever.
    async fn readable(&self, operation: &'static str, rows: &[Row]) -> Result<Vec<Message>> {
        let mut claimed = Vec::with_capacity(rows.len());
        let mut damaged = std::collections::BTreeMap::new();
        for row in rows {
            match rows::message(row) {
                Ok(message) => claimed.push(message),
                Err(error) => {
                    let id = row.get::<_, &[u8]>(0);
                    tracing::error!(?id, %error, "a message cannot be read and has failed");
                    // An id of another length cannot be a parameter of a result.
                    if let Ok(id) = MessageId::try_from(id) {
                        let result = ResultRecord {
                            processed_time: timestamp(self.clock.now()),
                            failure: Some(format!("The stored message cannot be read: {error}.")),
                        };
                        damaged.insert(id, result);
                    }
                }
            }
        }
        if !damaged.is_empty()
            && let Err(error) = self.set_results(operation, damaged).await
        {
            tracing::warn!(%error, "a message that cannot be read is due again later");
        }
        Ok(claimed)
    }
}

#[async_trait]
impl ClaimServerMessages for Shared {
    async fn claim_server_messages(&self, limit: u64) -> Result<Vec<Message>> {
        const OPERATION: &str = "server_messages_for_processing";
        if limit == 0 {
            self.check_open(OPERATION)?;
            return Ok(Vec::new());
        }
        let token = self.token();
        let limit = number(limit);
        let rows = self
            .write(OPERATION, |tx| async move {
                if tx.replays() {
                    let mine = tx.rows(&MINE_FOR_SERVER, &[&token]).await?;
                    if !mine.is_empty() {
                        return Ok(mine);
                    }
                }
                let now_micros = epoch_micros(self.clock.now());
                let due_micros: Vec<_> = (1..=MOST_DELAYS)
                    .map(|claims| epoch_micros(self.clock.server_retry_time(claims)))
                    .collect();
                let values: Values<'_> = &[&now_micros, &limit, &max_bytes(), &due_micros, &token];
                tx.last(&CLAIM_FOR_SERVER, values).await
            })
            .await?;
        self.readable(OPERATION, &rows).await
    }
}

fn max_bytes() -> i64 {
    i64::try_from(MAX_CLAIM_BYTES).expect("some megabytes")
}

// Candidates are found without locks and give each service its share; then as
// many rows are locked, those excepted that somebody else holds. Without limits the services are found in the index, from
// one to the next: they are few, and a backlog is skipped, not walked.
const CLAIM_FOR_CLIENT: Query = Query {
    sql: "\
-- client_messages_for_processing
WITH RECURSIVE services (service) AS (
    (
        SELECT service FROM client_pending WHERE client_id = $1 AND $6
        ORDER BY service LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT pending.service FROM client_pending AS pending
        WHERE pending.client_id = $1 AND pending.service > services.service
        ORDER BY pending.service LIMIT 1
    )
    FROM services WHERE services.service IS NOT NULL
), accepted (service, most) AS (
    SELECT service, most FROM unnest($4::bytea[], $5::bigint[]) AS listed (service, most)
    UNION ALL
    SELECT service, $3 FROM services WHERE service IS NOT NULL
), candidates AS (
    SELECT accepted.service, due.message_id, due.due_micros, due.value_bytes
    FROM accepted CROSS JOIN LATERAL (
        SELECT message_id, due_micros, value_bytes FROM client_pending
        WHERE client_id = $1 AND client_pending.service = accepted.service AND due_micros <= $2
        ORDER BY due_micros, message_id LIMIT accepted.most
    ) AS due
    ORDER BY due.due_micros, due.message_id LIMIT $3
), shares AS (
    SELECT service, count(*) AS most FROM (
        SELECT service, sum(value_bytes) OVER (
            ORDER BY due_micros, message_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS bytes_before
        FROM candidates
    ) AS fitting
    WHERE coalesce(bytes_before, 0) < $7 GROUP BY service
), locked AS (
    SELECT due.message_id, due.due_micros, due.value_bytes
    FROM shares CROSS JOIN LATERAL (
        SELECT message_id, due_micros, value_bytes FROM client_pending
        WHERE client_id = $1 AND client_pending.service = shares.service AND due_micros <= $2
        ORDER BY due_micros, message_id LIMIT shares.most
        FOR UPDATE SKIP LOCKED
    ) AS due
), picked AS (
    SELECT message_id, sum(value_bytes) OVER (
        ORDER BY due_micros, message_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM locked
), claimed AS (
    UPDATE client_pending AS pending
    SET due_micros = $8, claims = pending.claims + 1, claim_token = $9,
        was_due_micros = pending.due_micros
    WHERE client_id = $1 AND message_id = ANY(ARRAY(
        SELECT message_id FROM picked WHERE coalesce(bytes_before, 0) < $7
    ))
    RETURNING message_id, type_url, value, chunks, was_due_micros
)
SELECT
    messages.message_id, source_client, source_service, source_message_id, destination_client,
    destination_service, message_type, creation_seconds, creation_nanos, validation_info,
    annotations, processed_seconds, processed_nanos, failure, type_url,
    CASE WHEN chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM payload_chunks AS chunk
        WHERE chunk.client_id = $1 AND chunk.message_id = claimed.message_id
        AND chunk.chunk < chunks
    ) ELSE claimed.value END
FROM claimed CROSS JOIN LATERAL (
    SELECT
        message_id, source_client, source_service, source_message_id, destination_client,
        destination_service, message_type, creation_seconds, creation_nanos, validation_info,
        annotations, processed_seconds, processed_nanos, failure
    FROM messages
    WHERE messages.message_id = claimed.message_id AND messages.client_id = $1
    LIMIT 1
) AS messages
ORDER BY was_due_micros, claimed.message_id",
    types: &[
        BYTES, LONG, LONG, BYTES_LIST, LONG_LIST, BOOL, LONG, LONG, LONG,
    ],
};

const MINE_FOR_CLIENT: Query = Query {
    sql: "\
-- client_messages_for_processing (again)
SELECT
    messages.message_id, source_client, source_service, source_message_id, destination_client,
    destination_service, message_type, creation_seconds, creation_nanos, validation_info,
    annotations, processed_seconds, processed_nanos, failure, type_url,
    CASE WHEN chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM payload_chunks AS chunk
        WHERE chunk.client_id = messages.client_id AND chunk.message_id = messages.message_id
        AND chunk.chunk < chunks
    ) ELSE pending.value END
FROM client_pending AS pending JOIN messages USING (client_id, message_id)
WHERE pending.client_id = $1 AND pending.claim_token = $2
ORDER BY pending.was_due_micros, pending.message_id",
    types: &[BYTES, LONG],
};

const RELEASE: Query = Query {
    sql: "\
-- release_messages
UPDATE client_pending SET due_micros = $3
WHERE client_id = $1 AND message_id = ANY($2) AND due_micros > $3 AND claims <= $4",
    types: &[BYTES, BYTES_LIST, LONG, INT],
};

const CLAIM_FOR_SERVER: Query = Query {
    sql: "\
-- server_messages_for_processing
WITH locked AS (
    SELECT message_id, due_micros, value_bytes FROM server_pending
    WHERE due_micros <= $1
    ORDER BY due_micros, message_id LIMIT $2
    FOR UPDATE SKIP LOCKED
), picked AS (
    SELECT message_id, sum(value_bytes) OVER (
        ORDER BY due_micros, message_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
    ) AS bytes_before
    FROM locked
), claimed AS (
    UPDATE server_pending AS pending
    SET due_micros = ($4::bigint[])[least(pending.claims + 1, 100)], claims = pending.claims + 1,
        claim_token = $5, was_due_micros = pending.due_micros
    WHERE due_micros <= $1 AND message_id = ANY(ARRAY(
        SELECT message_id FROM picked WHERE coalesce(bytes_before, 0) < $3
    ))
    RETURNING client_id, message_id, type_url, value, chunks, was_due_micros
)
SELECT
    messages.message_id, source_client, source_service, source_message_id, destination_client,
    destination_service, message_type, creation_seconds, creation_nanos, validation_info,
    annotations, processed_seconds, processed_nanos, failure, type_url,
    CASE WHEN chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM payload_chunks AS chunk
        WHERE chunk.client_id = claimed.client_id AND chunk.message_id = claimed.message_id
        AND chunk.chunk < chunks
    ) ELSE claimed.value END
FROM claimed CROSS JOIN LATERAL (
    SELECT
        message_id, source_client, source_service, source_message_id, destination_client,
        destination_service, message_type, creation_seconds, creation_nanos, validation_info,
        annotations, processed_seconds, processed_nanos, failure
    FROM messages
    WHERE messages.message_id = claimed.message_id AND messages.client_id = claimed.client_id
    LIMIT 1
) AS messages
ORDER BY was_due_micros, claimed.message_id",
    types: &[LONG, LONG, LONG, LONG_LIST, LONG],
};

const MINE_FOR_SERVER: Query = Query {
    sql: "\
-- server_messages_for_processing (again)
SELECT
    messages.message_id, source_client, source_service, source_message_id, destination_client,
    destination_service, message_type, creation_seconds, creation_nanos, validation_info,
    annotations, processed_seconds, processed_nanos, failure, type_url,
    CASE WHEN chunks > 0 THEN (
        SELECT string_agg(chunk.value, ''::bytea ORDER BY chunk.chunk) FROM payload_chunks AS chunk
        WHERE chunk.client_id = messages.client_id AND chunk.message_id = messages.message_id
        AND chunk.chunk < chunks
    ) ELSE pending.value END
FROM server_pending AS pending JOIN messages USING (client_id, message_id)
WHERE pending.claim_token = $1
ORDER BY pending.was_due_micros, pending.message_id",
    types: &[LONG],
};

// A part of the index, as long as the limit at most.
const OVERDUE_FOR_SERVER: Query = Query {
    sql: "\
-- stats
SELECT count(*), min(due_micros) FROM (
    SELECT due_micros FROM server_pending WHERE due_micros <= $1 ORDER BY due_micros LIMIT $2
) AS overdue",
    types: &[LONG, LONG],
};
