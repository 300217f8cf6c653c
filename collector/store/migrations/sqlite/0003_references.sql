-- Signed files that were imported: reference values and VPN catalogues. The
-- newest of a kind is in force.
CREATE TABLE reference_files (
    version INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL,
    body    BLOB NOT NULL,
    file    BLOB NOT NULL
) STRICT;
CREATE INDEX reference_files_by_kind ON reference_files (kind, version);
