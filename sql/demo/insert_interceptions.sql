-- insert_interceptions: the interceptions of some ordinals, and the ids of those that are new.
--
-- Every value is a hash of the seed and the ordinal, or of the id that these two make, so that a repeat makes the same
-- rows. Ordinals come in blocks of 24, blocks fall into sessions (one person, one client, one task), and time goes by as
-- ordinals grow. A range begins and ends with a block, or ends with the last ordinal of all.
--
-- param   seed           bigint       which demo
-- param   first_ordinal  bigint       from this ordinal, the first of a block …
-- param   last_ordinal   bigint       … to this one
-- param   interceptions  bigint       how many there will be in the end
-- param   user_ids       uuid[]       who initiates them, the busiest first
-- param   newest         timestamptz  the end of the period that they cover
-- param   days           integer      the length of that period
-- result  many  id uuid
-- index   none
WITH layout (number, lengths) AS (
    VALUES
    (0, '{24}'::integer[]),
    (1, '{14, 6, 3, 1}'),
    (2, '{9, 7, 4, 2, 1, 1}'),
    (3, '{17, 5, 2}'),
    (4, '{1, 2, 3, 4, 6, 8}'),
    (5, '{5, 5, 4, 3, 3, 2, 1, 1}'),
    (6, '{11, 1, 1, 8, 3}'),
    (7, '{2, 1, 19, 2}')
),

-- What a client sends, and in how many of 1,024 sessions; over the period one model gives way to the next. %s in a user
-- agent is a version that grows.
kind (number, least, client, provider, provider_name, earlier_model, model, side_model, user_agent) AS (
    VALUES
    (
        1, 0, 'Claude Code', 'anthropic', 'anthropic', 'claude-sonnet-4-5-20250929', 'claude-sonnet-4-6',
        'claude-haiku-4-5-20251001', 'claude-cli/2.1.%s (external, cli)'
    ),
    (
        2, 280, 'Claude Code', 'anthropic', 'anthropic', 'claude-opus-4-5-20251101', 'claude-opus-4-6',
        'claude-haiku-4-5-20251001', 'claude-cli/2.1.%s (external, claude-vscode)'
    ),
    (
        3, 400, 'Codex', 'openai', 'openai', 'gpt-5.1-codex', 'gpt-5.2-codex', NULL,
        'codex_cli_rs/0.%s.0 (Mac OS 26.1.0; arm64) iTerm.app/3.6.5'
    ),
    (
        4, 495, 'Codex', 'openai', 'openai', 'gpt-5.1-codex-mini', 'gpt-5.2', NULL,
        'codex_cli_rs/0.%s.0 (Ubuntu 24.4.0; x86_64) xterm-256color'
    ),
    (
        5, 525, 'Cursor', 'anthropic', 'anthropic', 'claude-sonnet-4-5-20250929', 'claude-sonnet-4-6', NULL,
        'Cursor/2.%s.1'
    ),
    (6, 600, 'Cursor', 'openai', 'openai', 'gpt-5.1', 'gpt-5.2', 'gpt-5-mini', 'Cursor/2.%s.1'),
    (
        7, 655, 'GitHub Copilot (VS Code)', 'openai', 'azure-openai', 'gpt-4.1', 'gpt-5-mini', 'gpt-4o-mini',
        'GitHubCopilotChat/0.%s.2'
    ),
    (
        8, 715, 'GitHub Copilot (VS Code)', 'anthropic', 'anthropic', 'claude-sonnet-4-5-20250929',
        'claude-sonnet-4-6', NULL, 'GitHubCopilotChat/0.%s.2'
    ),
    (
        9, 755, 'Zed', 'anthropic', 'anthropic', 'claude-sonnet-4-5-20250929', 'claude-sonnet-4-6',
        'claude-haiku-4-5-20251001', 'Zed/0.2%s.4 (macos; aarch64)'
    ),
    (
        10, 805, 'Mux', 'anthropic', 'anthropic', 'claude-opus-4-5-20251101', 'claude-opus-4-6', NULL,
        'mux/0.%s.0 ai-sdk/anthropic/2.0.50'
    ),
    (
        11, 845, 'Roo Code', 'anthropic', 'anthropic', 'claude-sonnet-4-5-20250929', 'claude-sonnet-4-6', NULL,
        'roo-code/3.%s.0'
    ),
    (12, 885, 'Unknown', 'openai', 'azure-openai', 'gpt-4o-mini', 'gpt-4.1-mini', NULL, 'OpenAI/Python 2.%s.0'),
    (
        13, 930, 'Unknown', 'anthropic', 'anthropic', 'claude-haiku-4-5-20251001', 'claude-haiku-4-5-20251001', NULL,
        'Anthropic/Python 0.%s.0'
    ),
    (14, 958, NULL, 'anthropic', 'anthropic', 'claude-3-7-sonnet-20250219', 'claude-sonnet-4-5-20250929', NULL, NULL),
    (15, 980, NULL, 'openai', 'openai', 'gpt-4o', 'gpt-4.1', NULL, NULL),
    (16, 998, 'Unknown', 'openai', 'openai', 'o3', 'o4-mini', NULL, 'python-httpx/0.28.1'),
    (
        17, 1008, 'Claude Code', 'anthropic', 'anthropic', 'claude-opus-4-1-20250805', 'claude-opus-4-1-20250805',
        'claude-haiku-4-5-20251001', 'claude-cli/2.0.%s (external, sdk-ts)'
    ),
    (18, 1019, 'Zed', 'openai', 'openai', 'gpt-4.1', 'gpt-5.2', NULL, 'Zed/0.2%s.4 (linux; x86_64)')
),

kinds AS (
    SELECT array_agg(least ORDER BY number ASC) AS least
    FROM kind
),

-- How busy an hour is depends on the time of day and the day of the week where the person lives; use grows over the
-- period, and no two days are alike.
busy_hour AS (
    SELECT
        zone.number AS zone,
        hour.starts_at,
        (
            '{2, 1, 1, 1, 1, 2, 6, 22, 58, 86, 97, 90, 58, 76, 97, 100, 92, 70, 38, 22, 18, 15, 9, 4}'::float8[]
        )[1 + extract(HOUR FROM local.starts_at)::integer]
        * ('{0.95, 1.05, 1.06, 1.0, 0.82, 0.09, 0.12}'::float8[])[extract(ISODOW FROM local.starts_at)::integer]
        * (0.4 + 0.6 * hour.number / (:days::integer * 24))
        * (0.8 + (hashint8extended(hour.number / 24, :seed::bigint * 1000 + 1) & 1023)::float8 / 2560) AS weight
    FROM generate_series(0, :days::integer * 24 - 1) AS hour_number (number)
    CROSS JOIN LATERAL (
        SELECT
            hour_number.number,
            :newest::timestamptz - (:days::integer * 24 - hour_number.number) * interval '1 hour' AS starts_at
    ) AS hour
    CROSS JOIN (
        VALUES (0, 'Europe/Berlin'), (1, 'America/New_York'), (2, 'Asia/Kolkata'), (3, 'America/Los_Angeles')
    ) AS zone (number, name)
    CROSS JOIN LATERAL (SELECT hour.starts_at AT TIME ZONE zone.name AS starts_at) AS local
),

-- For each zone the hours, and the share of all its work that is done before each of them.
clock AS MATERIALIZED (
    SELECT
        zone,
        array_agg(starts_at ORDER BY starts_at ASC) AS hours,
        array_agg(done ORDER BY starts_at ASC) AS done
    FROM (
        SELECT
            zone,
            starts_at,
            (sum(weight) OVER (PARTITION BY zone ORDER BY starts_at ASC) - weight)
            / sum(weight) OVER (PARTITION BY zone) AS done
        FROM busy_hour
    ) AS hour
    GROUP BY zone
),

session AS (
    SELECT
        block.number AS block,
        part.length,
        -- the ordinal before its first, which is also its name
        block.number * 24 + sum(part.length) OVER (PARTITION BY block.number ORDER BY part.number ASC)
        - part.length AS start
    FROM generate_series((:first_ordinal::bigint - 1) / 24, (:last_ordinal::bigint - 1) / 24) AS block (number)
    INNER JOIN layout ON layout.number = hashint8extended(block.number, :seed::bigint * 1000 + 2) & 7
    CROSS JOIN LATERAL unnest(layout.lengths) WITH ORDINALITY AS part (length, number)
),

-- Everybody has a favourite client, and uses another for three sessions in ten. Favourites go round by the golden ratio
-- (633 of 1,024), so that a few people already share the clients out as many would; nobody's is a rare one.
cast_session AS (
    SELECT
        session.start,
        session.length,
        session.block,
        person.number AS person,
        progress.made,
        draw.two,
        width_bucket(
            (CASE WHEN draw.two & 1023 < 307 THEN draw.three & 1023 ELSE person.favourite END)::integer, kinds.least
        ) AS kind,
        (person.draw >> 20) & 3 AS zone
    FROM session
    CROSS JOIN kinds
    CROSS JOIN LATERAL (
        SELECT
            hashint8extended(session.start::bigint, :seed::bigint * 1000 + 3) AS one,
            hashint8extended(session.start::bigint, :seed::bigint * 1000 + 4) AS two,
            hashint8extended(session.start::bigint, :seed::bigint * 1000 + 5) AS three
    ) AS draw
    CROSS JOIN LATERAL (
        SELECT
            (session.block + (draw.one & 1023)::float8 / 1024)
            / ((:interceptions::bigint + 23) / 24) AS made,
            floor(
                cardinality(:user_ids::uuid[]) * power(((draw.one >> 10) & 1048575)::float8 / 1048576, 1.7)
            )::bigint AS picked
    ) AS progress
    CROSS JOIN LATERAL (
        SELECT
            progress.picked AS number,
            hashint8extended(progress.picked, :seed::bigint * 1000 + 6) AS draw,
            (progress.picked * 633 + 100 & 1023) * 945 / 1024 AS favourite
    ) AS person
),

-- A session is placed by its end, so that nothing ends after the period; the last three blocks end with it. Materialized,
-- lest every later step carry the arrays of the clock.
timed_session AS MATERIALIZED (
    SELECT
        cast_session.start,
        cast_session.length,
        cast_session.block,
        cast_session.person,
        cast_session.made,
        cast_session.kind,
        cast_session.two AS draw,
        cast_session.block >= (:interceptions + 23) / 24 - 3 AND :interceptions > 24 AS is_open,
        CASE
            WHEN cast_session.block >= (:interceptions + 23) / 24 - 3
                THEN :newest - ((cast_session.two >> 30) & 1023) * interval '87 milliseconds 331 microseconds'
            ELSE
                clock.hours[width_bucket(cast_session.made, clock.done)]
                + ((cast_session.two >> 30) & 1048575) * interval '3433 microseconds'
        END AS ends_at
    FROM cast_session
    INNER JOIN clock ON cast_session.zone = clock.zone
),

turn AS MATERIALIZED (
    SELECT
        timed_session.start,
        -- Of a hundred interceptions one has not ended: those that are going on, and those whose bridge was killed.
        place.number = timed_session.length
        AND (timed_session.is_open OR ((timed_session.draw >> 12) & 1023) < 53) AS is_running,
        timed_session.person,
        timed_session.made,
        timed_session.draw,
        timed_session.ends_at,
        kind.client,
        kind.provider,
        kind.provider_name,
        kind.earlier_model,
        kind.model,
        kind.side_model,
        kind.user_agent,
        place.number AS place,
        timed_session.start + place.number AS ordinal,
        identity.id,
        status.name AS status,
        -- the same draw as in insert_tool_usages
        CASE
            WHEN status.name <> 'completed' OR kind.client IS NULL OR kind.client = 'Unknown' THEN 0
            ELSE width_bucket((uuid_hash_extended(identity.id, 1) & 1023)::integer, '{330, 800, 930, 985}'::integer[])
        END AS calls,
        uuid_hash_extended(identity.id, 4) AS dice
    FROM timed_session
    INNER JOIN kind ON timed_session.kind = kind.number
    CROSS JOIN LATERAL generate_series(1, timed_session.length) AS place (number)
    CROSS JOIN LATERAL (
        SELECT md5(:seed::bigint || ' interception ' || timed_session.start + place.number) AS hex
    ) AS digest
    CROSS JOIN LATERAL (
        SELECT
            (
                substr(digest.hex, 1, 12) || '4' || substr(digest.hex, 14, 3)
                || translate(substr(digest.hex, 17, 1), '0123456789abcdef', '89ab89ab89ab89ab')
                || substr(digest.hex, 18)
            )::uuid AS id
    ) AS identity
    CROSS JOIN LATERAL (
        SELECT
            CASE
                WHEN uuid_hash_extended(identity.id, 3) & 1023 < 16 THEN 'failed'
                WHEN uuid_hash_extended(identity.id, 3) & 1023 < 36 THEN 'cancelled'
                ELSE 'completed'
            END AS name
    ) AS status
),

-- A request that follows a tool call answers it, within the time that the tool takes; one that does not is a person's.
linked_turn AS (
    SELECT
        *,
        coalesce(lag(calls) OVER in_order, 0) > 0 AS answers_call,
        lag(id) OVER in_order AS previous_id,
        exp(4.78 * ((dice & 65535)::float8 / 65536) ^ 1.35)
        * CASE WHEN status = 'failed' THEN 0.15 ELSE 1 END AS seconds,
        CASE
            WHEN place = 1 THEN 0
            WHEN lag(calls) OVER in_order > 0 THEN 0.3 + exp(3.5 * ((dice >> 16) & 1023)::float8 / 1024) / 2
            WHEN coalesce(client, 'Unknown') = 'Unknown' THEN 0.4 + ((dice >> 16) & 1023)::float8 / 500
            ELSE 12 * exp(3.6 * ((dice >> 16) & 1023)::float8 / 1024)
        END AS pause
    FROM turn
    WINDOW in_order AS (PARTITION BY start ORDER BY place ASC)
),

placed_turn AS (
    SELECT
        *,
        ends_at
        - (sum(seconds + pause) OVER (PARTITION BY start ORDER BY place DESC) - pause) * interval '1 second'
            AS started_at,
        max(CASE WHEN NOT answers_call THEN place END) OVER (PARTITION BY start ORDER BY place ASC) AS root_place
    FROM linked_turn
),

rooted_turn AS (
    SELECT
        *,
        first_value(id) OVER (PARTITION BY start, root_place ORDER BY place ASC) AS root_id
    FROM placed_turn
)

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
    ended_at,
    thread_parent_id,
    thread_root_id,
    client_session_id
)
SELECT
    rooted_turn.id,
    (:user_ids::uuid[])[1 + rooted_turn.person],
    -- each person has two tokens, and what came from elsewhere names none
    CASE
        WHEN rooted_turn.user_agent IS NOT NULL
            THEN substr(translate(encode(api_key.bytes, 'base64'), '+/=', ''), 1, 10)
    END,
    rooted_turn.provider,
    rooted_turn.provider_name,
    CASE
        WHEN rooted_turn.calls = 0 AND rooted_turn.dice >> 40 & 1023 < 340 AND rooted_turn.side_model IS NOT NULL
            THEN rooted_turn.side_model
        WHEN rooted_turn.made < 0.2 + (rooted_turn.draw >> 40 & 1023)::float8 / 2048
            THEN rooted_turn.earlier_model
        ELSE rooted_turn.model
    END,
    rooted_turn.client,
    jsonb_strip_nulls(
        jsonb_build_object(
            'status', CASE WHEN NOT rooted_turn.is_running THEN rooted_turn.status END,
            'request_user_agent', format(rooted_turn.user_agent, 19 + (rooted_turn.made * 48)::integer),
            'credential_kind', CASE
                WHEN rooted_turn.user_agent IS NULL THEN NULL
                WHEN rooted_turn.person % 9 = 4 THEN 'byok'
                ELSE 'centralized'
            END,
            'credential_hint', CASE
                WHEN rooted_turn.user_agent IS NULL THEN NULL
                WHEN rooted_turn.provider = 'anthropic' THEN 'sk-ant-api03-...'
                WHEN rooted_turn.provider_name = 'openai' THEN 'sk-proj-...'
                ELSE '...'
            END || substr(
                md5(
                    rooted_turn.provider_name
                    || CASE WHEN rooted_turn.person % 9 = 4 THEN rooted_turn.person ELSE -1 END
                ), 1, 4
            ),
            'error_type', CASE
                WHEN rooted_turn.is_running OR rooted_turn.status <> 'failed' THEN NULL
                WHEN rooted_turn.dice >> 30 & 3 > 0 THEN 'rate_limit_error'
                WHEN rooted_turn.provider = 'anthropic' THEN 'overloaded_error'
                ELSE 'server_error'
            END,
            'provider_status', CASE
                WHEN rooted_turn.is_running OR rooted_turn.status <> 'failed' THEN NULL
                WHEN rooted_turn.dice >> 30 & 3 > 0 THEN 429
                WHEN rooted_turn.provider = 'anthropic' THEN 529
                ELSE 500
            END
        )
    ),
    rooted_turn.started_at,
    CASE WHEN NOT rooted_turn.is_running THEN rooted_turn.started_at + rooted_turn.seconds * interval '1 second' END,
    CASE WHEN rooted_turn.answers_call THEN rooted_turn.previous_id END,
    CASE WHEN rooted_turn.answers_call THEN rooted_turn.root_id END,
    CASE
        WHEN rooted_turn.client IN ('Claude Code', 'Codex', 'GitHub Copilot (VS Code)')
            THEN (
                substr(session_digest.hex, 1, 12) || '4' || substr(session_digest.hex, 14, 3)
                || substr('89ab', 1 + (rooted_turn.draw & 3)::integer, 1) || substr(session_digest.hex, 18)
            )::uuid::text
        WHEN rooted_turn.client = 'Mux' THEN substr(session_digest.hex, 1, 10)
    END
FROM rooted_turn
CROSS JOIN LATERAL (SELECT md5(:seed::bigint || ' session ' || rooted_turn.start) AS hex) AS session_digest
CROSS JOIN LATERAL (
    SELECT
        sha256(
            (:seed::bigint || ' key ' || rooted_turn.person * 2 + (rooted_turn.draw >> 55 & 1))::bytea
        ) AS bytes
) AS api_key
WHERE rooted_turn.ordinal BETWEEN :first_ordinal::bigint AND :last_ordinal::bigint
ORDER BY rooted_turn.started_at ASC
ON CONFLICT DO NOTHING
RETURNING id
