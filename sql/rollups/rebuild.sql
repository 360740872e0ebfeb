-- rebuild: set every bucket right by what it differs from a full count. What is written meanwhile is in neither side of
-- the difference, or in both. Only behind take_upkeep and after insert_all_kinds.
--
-- result  none
-- index   none
INSERT INTO bridgelog_rollup_buckets (initiator_id, level, starts_at, kind_id, interceptions)
SELECT
    differences.initiator_id,
    differences.level,
    differences.starts_at,
    kinds.id AS kind_id,
    differences.counted - differences.rolled_up AS interceptions
FROM bridgelog_rollup_differences AS differences
INNER JOIN bridgelog_rollup_kinds AS kinds
    ON differences.provider = kinds.provider
        AND differences.provider_name = kinds.provider_name
        AND differences.model = kinds.model
        AND differences.client = kinds.client
ON CONFLICT (initiator_id, level, starts_at, kind_id) DO UPDATE
SET interceptions = bridgelog_rollup_buckets.interceptions + excluded.interceptions
