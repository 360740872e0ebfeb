-- The models, the most frequent first.
SELECT model AS name
FROM aibridge_interceptions
WHERE ended_at IS NOT NULL
GROUP BY model
ORDER BY count(*) DESC, model ASC
