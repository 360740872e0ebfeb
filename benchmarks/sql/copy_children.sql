-- The children of the copies among the newest and the oldest interceptions, where first and deep pages are read; the
-- originals have theirs.
CREATE TEMP TABLE moved AS
SELECT
    original.id,
    copy.number,
    pg_temp.earlier(original.session_id, copy.number) AS earlier,
    original.started_at - pg_temp.earlier(original.session_id, copy.number) AS started_at
FROM bench_template AS original
CROSS JOIN generate_series(1, 9) AS copy (number);

CREATE TEMP TABLE chosen AS
(SELECT * FROM moved ORDER BY started_at DESC LIMIT 900000)
UNION ALL
(SELECT * FROM moved ORDER BY started_at ASC LIMIT 900000);
ANALYZE chosen;

INSERT INTO aibridge_token_usages
SELECT
    pg_temp.of_copy(child.id, chosen.number), pg_temp.of_copy(chosen.id, chosen.number), provider_response_id,
    input_tokens, output_tokens, cache_read_input_tokens, cache_write_input_tokens, metadata,
    created_at - chosen.earlier
FROM chosen INNER JOIN aibridge_token_usages AS child ON chosen.id = child.interception_id
ORDER BY created_at ASC;

INSERT INTO aibridge_user_prompts
SELECT
    pg_temp.of_copy(child.id, chosen.number), pg_temp.of_copy(chosen.id, chosen.number), provider_response_id,
    prompt, metadata, created_at - chosen.earlier
FROM chosen INNER JOIN aibridge_user_prompts AS child ON chosen.id = child.interception_id
ORDER BY created_at ASC;

INSERT INTO aibridge_tool_usages
SELECT
    pg_temp.of_copy(child.id, chosen.number), pg_temp.of_copy(chosen.id, chosen.number), provider_response_id,
    provider_tool_call_id, server_url, tool, input, injected, invocation_error, metadata, created_at - chosen.earlier
FROM chosen INNER JOIN aibridge_tool_usages AS child ON chosen.id = child.interception_id
ORDER BY created_at ASC;

DROP TABLE moved, chosen, bench_template;
SET session_replication_role = origin;
