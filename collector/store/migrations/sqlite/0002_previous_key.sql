-- The key before a renewal, until the new one is used for the first time: the
-- answer may have been lost. All three are NULL when there is none.
ALTER TABLE credentials ADD COLUMN previous_spki_sha256 BLOB;
ALTER TABLE credentials ADD COLUMN previous_serial TEXT;
ALTER TABLE credentials ADD COLUMN previous_not_after INTEGER;
