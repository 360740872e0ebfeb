BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
SELECT count(*) FROM aibridge_interceptions WHERE ended_at IS NOT NULL;
SELECT interceptions.*, users.username, users.name, users.avatar_url FROM aibridge_interceptions AS interceptions LEFT JOIN users ON interceptions.initiator_id = users.id WHERE interceptions.ended_at IS NOT NULL ORDER BY interceptions.started_at DESC, interceptions.id DESC LIMIT 25 OFFSET 0;
SELECT * FROM aibridge_token_usages WHERE interception_id = ANY(ARRAY(SELECT id FROM aibridge_interceptions WHERE ended_at IS NOT NULL ORDER BY started_at DESC, id DESC LIMIT 25)) ORDER BY created_at, id;
SELECT * FROM aibridge_user_prompts WHERE interception_id = ANY(ARRAY(SELECT id FROM aibridge_interceptions WHERE ended_at IS NOT NULL ORDER BY started_at DESC, id DESC LIMIT 25)) ORDER BY created_at, id;
SELECT * FROM aibridge_tool_usages WHERE interception_id = ANY(ARRAY(SELECT id FROM aibridge_interceptions WHERE ended_at IS NOT NULL ORDER BY started_at DESC, id DESC LIMIT 25)) ORDER BY created_at, id;
COMMIT;
