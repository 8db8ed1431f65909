-- Where operators and agents find the leader.
ALTER TABLE lease ADD COLUMN endpoint TEXT NOT NULL DEFAULT '';
