-- verify: where buckets and changes differ from a full count, the latest first. The all-zero initiator is everyone.
--
-- param   most  bigint  tell at most this many
-- result  many  initiator_id uuid, level text, starts_at timestamptz, provider text, provider_name text, model text, client text, rolled_up bigint, counted bigint
-- index   none
SELECT
    initiator_id,
    level,
    starts_at,
    provider,
    provider_name,
    model,
    client,
    rolled_up,
    counted
FROM bridgelog_rollup_differences
ORDER BY starts_at DESC, level ASC, initiator_id ASC, provider ASC, provider_name ASC, model ASC, client ASC
LIMIT :most
