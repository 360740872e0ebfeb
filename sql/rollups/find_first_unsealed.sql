-- find_first_unsealed: when the earliest interception started that is not in the rollups.
--
-- param   sealed_until  timestamptz  up to where the rollups reach
-- result  maybe  started_at timestamptz
-- index   aibridge_interceptions_started_at_idx
SELECT started_at
FROM aibridge_interceptions
WHERE ended_at IS NOT NULL
    AND started_at >= :sealed_until
ORDER BY started_at ASC, id ASC
LIMIT 1
