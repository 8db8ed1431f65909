ALTER TABLE users DROP COLUMN new_column;

DROP TABLE new_feature_table;
