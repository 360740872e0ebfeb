-- insert_all_kinds: give an id to those kinds among all interceptions that have none.
--
-- result  none
-- index   none
INSERT INTO bridgelog_rollup_kinds (provider, provider_name, model, client)
SELECT DISTINCT
    stored.provider,
    stored.provider_name,
    stored.model,
    coalesce(stored.client::text, 'Unknown') AS client
FROM aibridge_interceptions AS stored
WHERE NOT EXISTS (
    SELECT 1
    FROM bridgelog_rollup_kinds AS kinds
    WHERE kinds.provider = stored.provider
        AND kinds.provider_name = stored.provider_name
        AND kinds.model = stored.model
        AND kinds.client = coalesce(stored.client::text, 'Unknown')
)
ON CONFLICT DO NOTHING
