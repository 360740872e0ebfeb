-- Every interception that started in a stretch of time, ten times, in the order in which they would have come in.
INSERT INTO aibridge_interceptions (
    id, initiator_id, api_key_id, provider, provider_name, model, client, metadata, started_at, ended_at,
    thread_parent_id, thread_root_id, client_session_id
)
SELECT
    pg_temp.of_copy(original.id, copy.number),
    pg_temp.person(original.initiator_id, copy.number),
    original.api_key_id,
    original.provider,
    original.provider_name,
    original.model,
    original.client,
    original.metadata,
    original.started_at - pg_temp.earlier(original.session_id, copy.number) AS started_at,
    original.ended_at - pg_temp.earlier(original.session_id, copy.number),
    pg_temp.of_copy(original.thread_parent_id, copy.number),
    pg_temp.of_copy(original.thread_root_id, copy.number),
    original.client_session_id
FROM bench_template AS original
CROSS JOIN generate_series(0, 9) AS copy (number)
WHERE original.started_at >= $1
    AND original.started_at < $2
ORDER BY started_at ASC
