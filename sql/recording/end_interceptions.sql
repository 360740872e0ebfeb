-- end_interceptions: set the end of those interceptions that have none.
--
-- param   ids       uuid[]         ids
-- param   ended_at  timestamptz[]  their ends, in the same order
-- result  many  id uuid
-- index   aibridge_interceptions_pkey
UPDATE aibridge_interceptions
SET ended_at = sent.ended_at
FROM unnest(:ids::uuid[], :ended_at::timestamptz[]) AS sent (id, ended_at)
WHERE aibridge_interceptions.id = sent.id
    AND aibridge_interceptions.ended_at IS NULL
RETURNING aibridge_interceptions.id
