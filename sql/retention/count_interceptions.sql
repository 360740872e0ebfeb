-- count_interceptions: what there is of interceptions that started before an instant, and of what they own, by kind: how
-- many, and from when to when.
--
-- param   before  timestamptz  what started before this instant is due
-- result  many  kind text, found bigint, oldest timestamptz, newest timestamptz
-- index   aibridge_interceptions_started_at_idx, aibridge_interceptions_running_started_at_idx
WITH due AS MATERIALIZED (
    SELECT
        id,
        started_at
    FROM aibridge_interceptions
    WHERE ended_at IS NOT NULL
        AND started_at < :before
    UNION ALL
    SELECT
        id,
        started_at
    FROM aibridge_interceptions
    WHERE ended_at IS NULL
        AND started_at < :before
)

SELECT
    'interceptions' AS kind,
    count(*) AS found,
    min(started_at) AS oldest,
    max(started_at) AS newest
FROM due
UNION ALL
SELECT
    'token_usages' AS kind,
    count(*) AS found,
    min(aibridge_token_usages.created_at) AS oldest,
    max(aibridge_token_usages.created_at) AS newest
FROM due
INNER JOIN aibridge_token_usages ON due.id = aibridge_token_usages.interception_id
UNION ALL
SELECT
    'user_prompts' AS kind,
    count(*) AS found,
    min(aibridge_user_prompts.created_at) AS oldest,
    max(aibridge_user_prompts.created_at) AS newest
FROM due
INNER JOIN aibridge_user_prompts ON due.id = aibridge_user_prompts.interception_id
UNION ALL
SELECT
    'tool_usages' AS kind,
    count(*) AS found,
    min(aibridge_tool_usages.created_at) AS oldest,
    max(aibridge_tool_usages.created_at) AS newest
FROM due
INNER JOIN aibridge_tool_usages ON due.id = aibridge_tool_usages.interception_id
UNION ALL
SELECT
    'model_thoughts' AS kind,
    count(*) AS found,
    min(aibridge_model_thoughts.created_at) AS oldest,
    max(aibridge_model_thoughts.created_at) AS newest
FROM due
INNER JOIN aibridge_model_thoughts ON due.id = aibridge_model_thoughts.interception_id
