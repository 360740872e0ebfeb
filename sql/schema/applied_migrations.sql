-- applied_migrations: the migrations that the database has.
--
-- result  many  migration_id varchar
-- index   none
SELECT migration_id
FROM _yoyo_migration
ORDER BY migration_id ASC
