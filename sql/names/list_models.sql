-- list_models: the distinct models of ended interceptions that the caller may see, by code point.
--
-- For a database without rollups.
--
-- param   prefix      text    only names that begin with this; '' is all of them
-- param   visible_to  uuid    optional: only models that this user used
-- param   page_size   bigint  at most this many names
-- param   skip        bigint  leave out that many first
-- result  many  name text
-- index   none
SELECT model AS name
FROM aibridge_interceptions
WHERE ended_at IS NOT NULL
    AND starts_with(model, :prefix)
    AND initiator_id = :visible_to  -- optional
GROUP BY model
ORDER BY (model) COLLATE "C" ASC
LIMIT :page_size
OFFSET :skip
