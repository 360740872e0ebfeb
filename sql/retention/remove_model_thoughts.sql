-- remove_model_thoughts: empty the contents of the oldest model thoughts that were created before an instant.
--
-- Interception, instant and content are the identity of a thought: of several that differ in their content alone, one row
-- stays, and the others are deleted. Those that somebody is writing right now are left to the next round.
--
-- param   since   timestamptz  optional: where the batch before this one ended
-- param   before  timestamptz  what was created before this instant is due
-- param   most    bigint       at most this many
-- result  one  reached timestamptz, removed bigint
-- index   aibridge_model_thoughts_content_idx, aibridge_model_thoughts_identity_idx
WITH batch AS MATERIALIZED (
    SELECT
        ctid AS place,
        interception_id,
        created_at
    FROM aibridge_model_thoughts
    WHERE content <> ''
        AND created_at >= :since  -- optional
        AND created_at < :before
    ORDER BY created_at ASC
    LIMIT :most
    FOR UPDATE SKIP LOCKED
),

ranked AS MATERIALIZED (
    SELECT
        batch.place,
        row_number() OVER (PARTITION BY batch.interception_id, batch.created_at ORDER BY batch.place ASC) = 1
        AND NOT emptied.found AS stays
    FROM batch
    CROSS JOIN LATERAL (
        SELECT count(*) > 0 AS found
        FROM aibridge_model_thoughts AS thought
        WHERE thought.interception_id = batch.interception_id
            AND thought.created_at = batch.created_at
            AND thought.content = ''
    ) AS emptied
),

deleted AS (
    DELETE FROM aibridge_model_thoughts
    WHERE ctid = ANY(ARRAY(
        SELECT place
        FROM ranked
        WHERE NOT stays
    ))
),

removed AS (
    UPDATE aibridge_model_thoughts
    SET content = ''
    WHERE ctid = ANY(ARRAY(
        SELECT place
        FROM ranked
        WHERE stays
    ))
)

SELECT
    max(created_at) AS reached,
    count(*) AS removed
FROM batch
