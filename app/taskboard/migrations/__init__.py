"""The schema's history. Migrations only add: the version of the code before must work with the schema after."""
