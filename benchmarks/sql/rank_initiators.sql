-- The initiators, the most frequent first.
SELECT initiator_id AS name
FROM aibridge_interceptions
WHERE ended_at IS NOT NULL
GROUP BY initiator_id
ORDER BY count(*) DESC, initiator_id ASC
