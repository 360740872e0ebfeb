-- The end of an interception may merge metadata into what its start brought. The start can be sent again after that and
-- must still be recognised as a repeat, so what it brought is kept beside it. A row only where a merge changed something.

CREATE TABLE bridgelog_merged_metadata (
    interception_id uuid NOT NULL,
    metadata_before jsonb NOT NULL,
    CONSTRAINT bridgelog_merged_metadata_pkey PRIMARY KEY (interception_id),
    CONSTRAINT bridgelog_merged_metadata_interception_id_fkey
    FOREIGN KEY (interception_id) REFERENCES aibridge_interceptions (id) ON DELETE CASCADE
);
