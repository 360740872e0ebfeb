-- count_content: what content there is that was created before an instant, by kind: how many pieces, and from when to when.
--
-- param   before      timestamptz  what was created before this instant is due
-- param   kept_since  timestamptz  optional: not of interceptions that started before this instant, and are deleted whole
-- result  many  kind text, found bigint, oldest timestamptz, newest timestamptz
-- index   aibridge_user_prompts_content_idx, aibridge_tool_usages_content_idx, aibridge_model_thoughts_content_idx
WITH due AS (
    SELECT
        'user_prompts' AS kind,
        interception_id,
        created_at
    FROM aibridge_user_prompts
    WHERE prompt <> ''
        AND created_at < :before
    UNION ALL
    SELECT
        'tool_usages' AS kind,
        interception_id,
        created_at
    FROM aibridge_tool_usages
    WHERE input <> ''
        AND created_at < :before
    UNION ALL
    SELECT
        'model_thoughts' AS kind,
        interception_id,
        created_at
    FROM aibridge_model_thoughts
    WHERE content <> ''
        AND created_at < :before
)

SELECT
    due.kind,
    count(*) AS found,
    min(due.created_at) AS oldest,
    max(due.created_at) AS newest
FROM due
INNER JOIN aibridge_interceptions AS owner ON due.interception_id = owner.id
WHERE TRUE
    AND owner.started_at >= :kept_since  -- optional
GROUP BY due.kind
ORDER BY due.kind ASC
