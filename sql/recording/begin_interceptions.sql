-- begin_interceptions: the interceptions whose id is not stored yet, their threads found, and the prompt of each that has
-- one: as insert_interceptions and insert_user_prompts do, in one statement.
--
-- One array an attribute; a row is what stands at one position. No id may be there twice.
--
-- param   id                        uuid[]         ids
-- param   initiator_id              uuid[]         who caused them
-- param   api_key_id                text[]         with which token, or null
-- param   provider                  text[]         providers
-- param   provider_name             text[]         provider instances
-- param   model                     text[]         models as requested
-- param   client                    text[]         clients, or null
-- param   metadata                  jsonb[]        metadata
-- param   started_at                timestamptz[]  starts
-- param   client_session_id         text[]         the client's own sessions, or null
-- param   correlating_tool_call_id  text[]         the tool calls that they answer, or null
-- param   prompt_id                 uuid[]         ids of the prompts, or null where there is none
-- param   prompt                    text[]         the prompts, or null
-- param   prompt_metadata           jsonb[]        their metadata, or null
-- result  one  interceptions bigint, prompts bigint
-- index   aibridge_tool_usages_provider_tool_call_id_idx
WITH sent AS (
    SELECT
        sent.*,
        erased.user_id IS NOT NULL AS erased
    FROM unnest(
        :id::uuid[],
        :initiator_id::uuid[],
        :api_key_id::text[],
        :provider::text[],
        :provider_name::text[],
        :model::text[],
        :client::text[],
        :metadata::jsonb[],
        :started_at::timestamptz[],
        :client_session_id::text[],
        :correlating_tool_call_id::text[],
        :prompt_id::uuid[],
        :prompt::text[],
        :prompt_metadata::jsonb[]
    ) AS sent (
        id,
        initiator_id,
        api_key_id,
        provider,
        provider_name,
        model,
        client,
        metadata,
        started_at,
        client_session_id,
        correlating_tool_call_id,
        prompt_id,
        prompt,
        prompt_metadata
    )
    -- What erasure has removed does not come back.
    LEFT JOIN bridgelog_erased_users AS erased
        ON sent.initiator_id = erased.user_id
            AND sent.started_at <= erased.erased_until
),

interceptions AS (
    INSERT INTO aibridge_interceptions (
        id,
        initiator_id,
        api_key_id,
        provider,
        provider_name,
        model,
        client,
        metadata,
        started_at,
        client_session_id,
        thread_parent_id,
        thread_root_id
    )
    SELECT
        sent.id,
        sent.initiator_id,
        sent.api_key_id,
        sent.provider,
        sent.provider_name,
        sent.model,
        sent.client,
        CASE WHEN sent.erased THEN '{}' ELSE sent.metadata END AS metadata,
        sent.started_at,
        CASE WHEN NOT sent.erased THEN sent.client_session_id END AS client_session_id,
        parent.id AS thread_parent_id,
        coalesce(parent.thread_root_id, parent.id) AS thread_root_id
    FROM sent
    LEFT JOIN LATERAL (
        SELECT
            aibridge_interceptions.id,
            aibridge_interceptions.thread_root_id
        FROM aibridge_tool_usages
        INNER JOIN aibridge_interceptions ON aibridge_tool_usages.interception_id = aibridge_interceptions.id
        WHERE aibridge_tool_usages.provider_tool_call_id = sent.correlating_tool_call_id
            AND aibridge_interceptions.initiator_id = sent.initiator_id
        ORDER BY aibridge_tool_usages.created_at DESC, aibridge_tool_usages.id DESC
        LIMIT 1
    ) AS parent ON TRUE
    ORDER BY sent.id ASC
    ON CONFLICT (id) DO NOTHING
    RETURNING id
),

prompts AS (
    INSERT INTO aibridge_user_prompts (
        id,
        interception_id,
        provider_response_id,
        prompt,
        metadata,
        created_at
    )
    SELECT
        sent.prompt_id AS id,
        sent.id AS interception_id,
        -- It is recorded before there is an answer.
        '' AS provider_response_id,
        CASE WHEN sent.erased THEN '' ELSE sent.prompt END AS prompt,
        CASE WHEN sent.erased THEN '{}' ELSE sent.prompt_metadata END AS metadata,
        sent.started_at AS created_at
    FROM sent
    -- Those that were there already may not be this one's.
    INNER JOIN interceptions ON sent.id = interceptions.id
    WHERE sent.prompt_id IS NOT NULL
    ORDER BY sent.prompt_id ASC
    ON CONFLICT (id) DO NOTHING
    RETURNING id
)

SELECT
    (SELECT count(*) FROM interceptions) AS interceptions,
    (SELECT count(*) FROM prompts) AS prompts
