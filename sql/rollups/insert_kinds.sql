-- insert_kinds: give an id to those kinds among the changes that have none.
--
-- result  none
-- index   none
INSERT INTO bridgelog_rollup_kinds (provider, provider_name, model, client)
SELECT DISTINCT
    changes.provider,
    changes.provider_name,
    changes.model,
    changes.client
FROM bridgelog_rollup_changes AS changes
WHERE NOT EXISTS (
    SELECT 1
    FROM bridgelog_rollup_kinds AS kinds
    WHERE kinds.provider = changes.provider
        AND kinds.provider_name = changes.provider_name
        AND kinds.model = changes.model
        AND kinds.client = changes.client
)
ON CONFLICT DO NOTHING
