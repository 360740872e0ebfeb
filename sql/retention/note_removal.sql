-- note_removal: note that content older than an instant is being removed: where it is empty from now on, it is not compared.
--
-- param   before  timestamptz  what was created before this instant is due
-- result  none
-- index   none
UPDATE bridgelog_content_removal
SET removed_before = :before
WHERE removed_before < :before
