-- lock_interceptions: the interceptions of these ids that are stored; until the transaction ends nobody else ends them.
--
-- param   ids  uuid[]  ids
-- result  many  id uuid, started_at timestamptz, ended_at timestamptz
-- index   aibridge_interceptions_pkey
SELECT
    id,
    started_at,
    ended_at
FROM aibridge_interceptions
WHERE id = ANY(:ids)
ORDER BY id ASC
FOR NO KEY UPDATE
