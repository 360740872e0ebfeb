-- erase_model_thoughts: take content and metadata from the model thoughts of interceptions.
--
-- Interception, instant and content are the identity of a thought: of several that differ in their content alone, one row
-- stays, and the others are deleted.
--
-- param   ids  uuid[]  the interceptions
-- result  one  erased bigint
-- index   aibridge_model_thoughts_identity_idx
WITH ranked AS MATERIALIZED (
    SELECT
        ctid AS place,
        content <> '' OR metadata <> '{}' AS is_content,
        row_number() OVER (PARTITION BY interception_id, created_at ORDER BY (content <> '') ASC, ctid ASC) = 1 AS stays
    FROM aibridge_model_thoughts
    WHERE interception_id = ANY(:ids)
),

deleted AS (
    DELETE FROM aibridge_model_thoughts
    WHERE ctid = ANY(ARRAY(
        SELECT place
        FROM ranked
        WHERE NOT stays
    ))
),

emptied AS (
    UPDATE aibridge_model_thoughts
    SET content = '', metadata = '{}'
    WHERE ctid = ANY(ARRAY(
        SELECT place
        FROM ranked
        WHERE stays AND is_content
    ))
)

SELECT count(*) AS erased
FROM ranked
WHERE is_content
