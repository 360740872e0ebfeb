-- list_clients: the distinct clients of ended interceptions that the caller may see, by code point; a client that is null reads Unknown.
--
-- For a database without rollups.
--
-- param   prefix      text    only names that begin with this; '' is all of them
-- param   visible_to  uuid    optional: only clients that this user used
-- param   page_size   bigint  at most this many names
-- param   skip        bigint  leave out that many first
-- result  many  name text
-- index   none
SELECT coalesce(client::text, 'Unknown') AS name
FROM aibridge_interceptions
WHERE ended_at IS NOT NULL
    AND starts_with(coalesce(client::text, 'Unknown'), :prefix)
    AND initiator_id = :visible_to  -- optional
GROUP BY coalesce(client::text, 'Unknown')
ORDER BY (coalesce(client::text, 'Unknown')) COLLATE "C" ASC
LIMIT :page_size
OFFSET :skip
