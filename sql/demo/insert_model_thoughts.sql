-- insert_model_thoughts: what the model thought before it answered, in some of these new interceptions.
--
-- param   interception_ids  uuid[]  interceptions without model thoughts
-- result  none
-- index   aibridge_interceptions_pkey
WITH words AS (
    SELECT
        ARRAY[
            'The user wants the failure explained before anything changes, so I should read the test and '
            || 'its fixture first.',
            '**Inspecting the retry logic**'
            || E'\n\nThe deadline is checked after the sleep, not before it. That would explain '
            || 'the extra attempt.',
            'Two callers rely on the old return value. I will keep the signature and add a second function.',
            '**Planning the change**'
            || E'\n\nFirst the schema, then the writer, then the reader; each can be deployed alone.',
            'The index exists but the cast in the WHERE clause keeps the planner from using it.',
            'No test covers the empty list. I will write one, see it fail, then fix the loop.',
            'This looks like a race between the shutdown hook and the last flush. Let me check who closes '
            || 'the channel.',
            'The error is swallowed two frames up. Searching for a bare except.',
            '**Checking the configuration**'
            || E'\n\nThe timeout of the proxy is shorter than the one of the service, so the '
            || 'client sees 504 while the work goes on.',
            'I could add a dependency for this, but eight lines of the standard library do it.',
            'The plan says replace because the identifier changed, not the engine version. A moved block '
            || 'should do.',
            'The user asked for a small diff. I will leave the naming as it is.',
            'All tests pass. Before I say so I should run the linter too.',
            'The number in the ticket and the number in the log differ by one page, so this is an '
            || 'off-by-one in the cursor.',
            '**Considering the rollback**'
            || E'\n\nDropping the column is not reversible; it goes into a later release.',
            'The file is generated. The template is the place to change.'
        ] AS thoughts
),

parent AS (
    SELECT
        stored.id,
        stored.started_at,
        stored.ended_at - stored.started_at AS duration,
        uuid_hash_extended(stored.id, 9) AS dice
    FROM unnest(:interception_ids::uuid[]) AS listed (id)
    CROSS JOIN LATERAL (
        SELECT
            id,
            started_at,
            ended_at
        FROM aibridge_interceptions
        WHERE aibridge_interceptions.id = listed.id
            AND ended_at IS NOT NULL
            AND metadata ->> 'status' <> 'failed'
            AND client <> 'Unknown'
            AND model SIMILAR TO '%(opus|sonnet|codex)%'
        -- keeps this a look-up by id, whatever size the planner takes the table for
        ORDER BY id ASC
        LIMIT 1
    ) AS stored
)

INSERT INTO aibridge_model_thoughts (interception_id, content, created_at)
SELECT
    parent.id,
    words.thoughts[1 + (parent.dice >> 10 & 65535) % cardinality(words.thoughts)],
    parent.started_at + parent.duration * (0.1 + (parent.dice >> 26 & 511)::float8 / 1024)
FROM parent
CROSS JOIN words
WHERE parent.dice & 1023 < 190
ON CONFLICT DO NOTHING
