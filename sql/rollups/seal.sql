-- seal: count the interceptions of a stretch of time into the changes. Only behind lock_sealing.
--
-- param   sealed_until  timestamptz  up to where the rollups reach
-- param   seal_until    timestamptz  up to where they shall reach
-- result  none
-- index   aibridge_interceptions_started_at_idx
INSERT INTO bridgelog_rollup_changes (hour, initiator_id, provider, provider_name, model, client, interceptions)
SELECT
    date_trunc('hour', started_at, 'UTC') AS hour,
    initiator_id,
    provider,
    provider_name,
    model,
    coalesce(client::text, 'Unknown') AS client,
    count(*) AS interceptions
FROM aibridge_interceptions
WHERE ended_at IS NOT NULL
    AND started_at >= :sealed_until
    AND started_at < :seal_until
GROUP BY 1, 2, 3, 4, 5, 6
