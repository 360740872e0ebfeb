-- delete_interceptions: delete the oldest interceptions that started before an instant, with all that they own, and count
-- that.
--
-- Those that somebody is writing to right now are left to the next round. Each batch begins where the one before it ended: what
-- that one deleted may still be in the index.
--
-- param   running  boolean      optional: those that never ended, instead of those that did
-- param   since    timestamptz  optional: where the batch before this one ended
-- param   before   timestamptz  what started before this instant is due
-- param   most     bigint       at most this many
-- result  one  reached timestamptz, interceptions bigint, token_usages bigint, user_prompts bigint, tool_usages bigint, model_thoughts bigint
-- index   aibridge_interceptions_running_started_at_idx
WITH batch AS MATERIALIZED (
    SELECT
        id,
        started_at
    FROM aibridge_interceptions
    WHERE started_at < :before
        AND started_at >= :since           -- optional
        AND ended_at IS NOT NULL           -- unless running
        AND ended_at IS NULL AND :running  -- optional
    ORDER BY started_at ASC, id ASC
    LIMIT :most
    FOR UPDATE SKIP LOCKED
),

deleted AS (
    DELETE FROM aibridge_interceptions
    WHERE id = ANY(ARRAY(SELECT id FROM batch))
)

SELECT
    max(started_at) AS reached,
    count(*) AS interceptions,
    (
        SELECT count(*)
        FROM aibridge_token_usages
        WHERE interception_id = ANY(ARRAY(SELECT id FROM batch))
    ) AS token_usages,
    (
        SELECT count(*)
        FROM aibridge_user_prompts
        WHERE interception_id = ANY(ARRAY(SELECT id FROM batch))
    ) AS user_prompts,
    (
        SELECT count(*)
        FROM aibridge_tool_usages
        WHERE interception_id = ANY(ARRAY(SELECT id FROM batch))
    ) AS tool_usages,
    (
        SELECT count(*)
        FROM aibridge_model_thoughts
        WHERE interception_id = ANY(ARRAY(SELECT id FROM batch))
    ) AS model_thoughts
FROM batch
