-- remove_user_prompts: empty the prompts of the oldest user prompts that were created before an instant.
--
-- Those that somebody is writing right now are left to the next round, and which of several with the very same instant come
-- first does not matter.
--
-- param   since   timestamptz  optional: where the batch before this one ended
-- param   before  timestamptz  what was created before this instant is due
-- param   most    bigint       at most this many
-- result  one  reached timestamptz, removed bigint
-- index   aibridge_user_prompts_content_idx, aibridge_user_prompts_pkey
WITH batch AS MATERIALIZED (
    SELECT
        id,
        created_at
    FROM aibridge_user_prompts
    WHERE prompt <> ''
        AND created_at >= :since  -- optional
        AND created_at < :before
    ORDER BY created_at ASC
    LIMIT :most
    FOR NO KEY UPDATE SKIP LOCKED
),

removed AS (
    UPDATE aibridge_user_prompts
    SET prompt = ''
    WHERE id = ANY(ARRAY(SELECT id FROM batch))
)

SELECT
    max(created_at) AS reached,
    count(*) AS removed
FROM batch
