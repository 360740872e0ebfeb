-- insert_token_usages: what the answers of some new interceptions used. Where tools were injected, the gateway asked
-- again with their results, and each answer counts by itself.
--
-- param   interception_ids  uuid[]  interceptions without token usages
-- result  none
-- index   aibridge_interceptions_pkey
WITH parent AS (
    SELECT
        stored.id,
        stored.provider,
        stored.client,
        stored.started_at,
        stored.ended_at - stored.started_at AS duration,
        stored.metadata ->> 'status' = 'cancelled' AS is_cut_off,
        coalesce(stored.client, 'Unknown') <> 'Unknown' AS is_agent,
        row_number() OVER (PARTITION BY stored.session_id ORDER BY stored.started_at ASC, stored.id ASC) AS place,
        uuid_hash_extended(stored.id, 6) AS dice,
        hashtextextended(stored.session_id, 7) AS session_dice,
        -- the same draw as in insert_tool_usages
        CASE
            WHEN coalesce(stored.client, 'Unknown') = 'Unknown' OR stored.metadata ->> 'status' = 'cancelled' THEN 1
            ELSE 1 + width_bucket((uuid_hash_extended(stored.id, 2) & 1023)::integer, '{900, 985}'::integer[])
        END AS answers
    FROM unnest(:interception_ids::uuid[]) AS listed (id)
    CROSS JOIN LATERAL (
        SELECT
            id,
            provider,
            client,
            session_id,
            metadata,
            started_at,
            ended_at
        FROM aibridge_interceptions
        WHERE aibridge_interceptions.id = listed.id
            AND ended_at IS NOT NULL
            AND metadata ->> 'status' <> 'failed'
        -- keeps this a look-up by id, whatever size the planner takes the table for
        ORDER BY id ASC
        LIMIT 1
    ) AS stored
),

answer AS (
    SELECT
        parent.id AS interception_id,
        parent.provider,
        parent.client,
        parent.is_agent,
        number,
        digest.bytes,
        md5(parent.id || ' token usage ' || number) AS hex,
        parent.started_at
        + (parent.duration - interval '1 microsecond' * (3000 + (parent.dice & 131071)))
        * (number::float8 / parent.answers) AS created_at,
        -- what an agent has read and said so far is sent again with each request, from the cache where that still holds it
        CASE
            WHEN NOT parent.is_agent THEN 0
            ELSE 11000 + (parent.session_dice & 8191)
                + (parent.place + number - 2) * (2600 + (parent.session_dice >> 20 & 4095))
        END AS context,
        parent.is_agent AND parent.dice >> 8 & 31 > 0 AS is_cached,
        greatest(
            3,
            extract(EPOCH FROM parent.duration)::float8 * (24 + (parent.dice >> 16 & 63)) / parent.answers
            * CASE WHEN parent.is_cut_off THEN 0.4 ELSE 1 END
        )::bigint AS output_tokens,
        exp(7.2 * ((parent.dice >> 24 & 1023)::float8 / 1024))::bigint AS fresh,
        parent.dice
    FROM parent
    CROSS JOIN LATERAL generate_series(1, parent.answers) AS number
    CROSS JOIN LATERAL (SELECT sha256((parent.id || ' ' || number)::bytea) AS bytes) AS digest
),

counted AS (
    SELECT
        *,
        CASE
            WHEN NOT is_agent THEN 180 + fresh * 4
            WHEN NOT is_cached THEN context
            WHEN provider = 'anthropic' THEN 2 + (dice >> 36 & 7)
            ELSE 300 + fresh
        END AS input_tokens,
        CASE WHEN is_cached THEN least(context, 174000) / CASE WHEN provider = 'openai' THEN 128 ELSE 1 END ELSE 0 END
        * CASE WHEN provider = 'openai' THEN 128 ELSE 1 END AS cache_read,
        CASE WHEN is_cached AND provider = 'anthropic' THEN 160 + fresh * 3 ELSE 0 END AS cache_write
    FROM answer
)

INSERT INTO aibridge_token_usages (
    id,
    interception_id,
    provider_response_id,
    input_tokens,
    output_tokens,
    cache_read_input_tokens,
    cache_write_input_tokens,
    metadata,
    created_at
)
SELECT
    (
        substr(hex, 1, 12) || '4' || substr(hex, 14, 3)
        || substr('89ab', 1 + (dice & 3)::integer, 1) || substr(hex, 18)
    )::uuid,
    interception_id,
    CASE
        WHEN provider = 'anthropic' THEN 'msg_01' || substr(translate(encode(bytes, 'base64'), '+/=', ''), 1, 22)
        WHEN client = 'Codex' THEN 'resp_' || substr(encode(bytes, 'hex'), 1, 50)
        ELSE 'chatcmpl-' || substr(translate(encode(bytes, 'base64'), '+/=', ''), 1, 29)
    END,
    input_tokens,
    output_tokens,
    cache_read,
    cache_write,
    CASE
        WHEN provider = 'openai'
            THEN jsonb_build_object('reasoning_tokens', output_tokens * (dice >> 40 & 3) / 8, 'audio_tokens', 0)
        WHEN is_agent
            THEN jsonb_build_object('ephemeral_5m_input_tokens', cache_write, 'ephemeral_1h_input_tokens', 0)
        ELSE '{}'
    END,
    created_at
FROM counted
ON CONFLICT DO NOTHING
