-- list_clients: the distinct clients of ended interceptions that the caller may see, by code point; a client that is null
-- reads Unknown.
--
-- The recursion leaps along the index from each name to the next one, so that the cost is that of the names and not of the
-- interceptions.
--
-- param   prefix      text    only names that begin with this; '' is all of them
-- param   visible_to  uuid    optional: only clients that this user used
-- param   page_size   bigint  at most this many names
-- param   skip        bigint  leave out that many first
-- result  many  name text
-- index   aibridge_interceptions_client_idx
WITH RECURSIVE names AS (
    (
        SELECT coalesce(client::text, 'Unknown') COLLATE "C" AS name
        FROM aibridge_interceptions
        WHERE ended_at IS NOT NULL
            AND coalesce(client::text, 'Unknown') COLLATE "C" >= :prefix
        ORDER BY coalesce(client::text, 'Unknown') COLLATE "C" ASC
        LIMIT 1
    )
    UNION ALL
    SELECT
        (
            SELECT coalesce(client::text, 'Unknown') COLLATE "C"
            FROM aibridge_interceptions
            WHERE ended_at IS NOT NULL
                AND coalesce(client::text, 'Unknown') COLLATE "C" > names.name
            ORDER BY coalesce(client::text, 'Unknown') COLLATE "C" ASC
            LIMIT 1
        ) AS name
    FROM names
    WHERE starts_with(names.name, :prefix)
)

SELECT name
FROM names
WHERE starts_with(name, :prefix)
    AND EXISTS (
        SELECT 1
        FROM aibridge_interceptions
        WHERE ended_at IS NOT NULL
            AND coalesce(client::text, 'Unknown') COLLATE "C" = names.name
            AND initiator_id = :visible_to  -- optional
    )
ORDER BY name ASC
LIMIT :page_size
OFFSET :skip
