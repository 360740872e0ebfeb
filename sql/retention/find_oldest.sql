-- find_oldest: when the oldest interception started, and when the oldest content was created.
--
-- result  one  interception timestamptz, content timestamptz
-- index   aibridge_interceptions_started_at_idx, aibridge_interceptions_running_started_at_idx, aibridge_user_prompts_content_idx, aibridge_tool_usages_content_idx, aibridge_model_thoughts_content_idx
SELECT
    least(
        (
            SELECT min(started_at)
            FROM aibridge_interceptions
            WHERE ended_at IS NOT NULL
        ),
        (
            SELECT min(started_at)
            FROM aibridge_interceptions
            WHERE ended_at IS NULL
        )
    ) AS interception,
    least(
        (
            SELECT min(created_at)
            FROM aibridge_user_prompts
            WHERE prompt <> ''
        ),
        (
            SELECT min(created_at)
            FROM aibridge_tool_usages
            WHERE input <> ''
        ),
        (
            SELECT min(created_at)
            FROM aibridge_model_thoughts
            WHERE content <> ''
        )
    ) AS content
