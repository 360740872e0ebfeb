DROP TABLE bridgelog_merged_metadata;
