-- list_matching: a page of the interceptions that match a search and may be seen by the caller, newest first, each as
-- the JSON text that the client gets, its usages, prompts and tool calls nested, oldest first.
--
-- The order of the columns is the order of the members. An instant is the text of a timestamp in UTC (DateStyle is ISO on
-- every connection), whose fraction has no trailing zeros, made RFC 3339 by a T and a Z. The initiator may have no row in
-- users.
--
-- param   visible_to         uuid         optional: only what this user initiated
-- param   initiator_id       uuid         optional: only this initiator
-- param   provider           text         optional: only this provider
-- param   provider_name      text         optional: only this provider instance
-- param   model              text         optional: only this model
-- param   client             text         optional: only this client; a client that is null reads Unknown
-- param   started_after      timestamptz  optional: not before this instant
-- param   started_before     timestamptz  optional: not after this instant
-- param   started_until      timestamptz  optional: not after this instant, where a deep page was located
-- param   cursor_started_at  timestamptz  optional: only what follows this instant …
-- param   cursor_id          uuid         optional: … and this id
-- param   interception_id    uuid         optional: only this interception, ended or not
-- param   skip               bigint       optional: leave out that many first
-- param   page_size          bigint       at most this many rows
-- result  many  interception json
-- index   aibridge_interceptions_pkey
WITH page AS (
    SELECT
        id,
        initiator_id,
        api_key_id,
        provider,
        provider_name,
        model,
        client,
        metadata,
        started_at,
        ended_at
    FROM aibridge_interceptions
    WHERE TRUE
        AND ended_at IS NOT NULL                                   -- unless interception_id
        AND id = :interception_id                                  -- optional
        AND initiator_id = :visible_to                             -- optional
        AND initiator_id = :initiator_id                           -- optional
        AND provider = :provider                                   -- optional
        AND provider_name = :provider_name                         -- optional
        AND model = :model                                         -- optional
        AND coalesce(client::text, 'Unknown') = :client            -- optional
        AND started_at >= :started_after                           -- optional
        AND started_at <= :started_before                          -- optional
        AND started_at <= :started_until                           -- optional
        AND (started_at, id) < (:cursor_started_at, :cursor_id)    -- optional
    ORDER BY started_at DESC, id DESC
    LIMIT :page_size
    OFFSET :skip                                                   -- optional
)

SELECT row_to_json(result) AS interception
FROM page
LEFT JOIN users ON page.initiator_id = users.id
CROSS JOIN LATERAL (
    SELECT
        page.id,
        page.initiator_id,
        (
            SELECT row_to_json(initiator)
            FROM (
                SELECT
                    page.initiator_id AS id,
                    coalesce(users.username, '') AS username,
                    coalesce(users.name, '') AS name,
                    coalesce(users.avatar_url, '') AS avatar_url
            ) AS initiator
        ) AS initiator,
        page.api_key_id,
        page.provider,
        page.provider_name,
        page.model,
        page.client,
        coalesce(page.metadata, '{}') AS metadata,
        replace((page.started_at AT TIME ZONE 'UTC')::text, ' ', 'T') || 'Z' AS started_at,
        replace((page.ended_at AT TIME ZONE 'UTC')::text, ' ', 'T') || 'Z' AS ended_at,
        (
            SELECT coalesce(json_agg(row_to_json(token_usage)), '[]')
            FROM (
                SELECT
                    id,
                    interception_id,
                    provider_response_id,
                    input_tokens,
                    output_tokens,
                    cache_read_input_tokens,
                    cache_write_input_tokens,
                    coalesce(metadata, '{}') AS metadata,
                    replace((created_at AT TIME ZONE 'UTC')::text, ' ', 'T') || 'Z' AS created_at
                FROM aibridge_token_usages
                WHERE interception_id = page.id
                ORDER BY aibridge_token_usages.created_at ASC, id ASC
            ) AS token_usage
        ) AS token_usages,
        (
            SELECT coalesce(json_agg(row_to_json(tool_usage)), '[]')
            FROM (
                SELECT
                    id,
                    interception_id,
                    provider_response_id,
                    coalesce(server_url, '') AS server_url,
                    tool,
                    input,
                    injected,
                    coalesce(invocation_error, '') AS invocation_error,
                    coalesce(metadata, '{}') AS metadata,
                    replace((created_at AT TIME ZONE 'UTC')::text, ' ', 'T') || 'Z' AS created_at
                FROM aibridge_tool_usages
                WHERE interception_id = page.id
                ORDER BY aibridge_tool_usages.created_at ASC, id ASC
            ) AS tool_usage
        ) AS tool_usages,
        (
            SELECT coalesce(json_agg(row_to_json(user_prompt)), '[]')
            FROM (
                SELECT
                    id,
                    interception_id,
                    provider_response_id,
                    prompt,
                    coalesce(metadata, '{}') AS metadata,
                    replace((created_at AT TIME ZONE 'UTC')::text, ' ', 'T') || 'Z' AS created_at
                FROM aibridge_user_prompts
                WHERE interception_id = page.id
                ORDER BY aibridge_user_prompts.created_at ASC, id ASC
            ) AS user_prompt
        ) AS user_prompts
) AS result
ORDER BY page.started_at DESC, page.id DESC
